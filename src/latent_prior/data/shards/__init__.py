"""Images in shards: tar, parquet and Arrow files, in a folder or an object store."""
