"""Single pictures and short clips over HTTP, as SageMaker's container contract wants it."""
