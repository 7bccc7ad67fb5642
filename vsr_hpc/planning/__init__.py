"""How a job becomes chunks and shards."""
