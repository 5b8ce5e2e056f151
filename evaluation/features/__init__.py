"""Images to feature vectors, and the statistics of a reference."""
