"""Objects in a folder or in S3, sources and outputs."""
