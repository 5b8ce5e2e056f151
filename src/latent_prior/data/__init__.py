"""Images in, codes in and out: where the data comes from and in which order it is read."""
