"""What AWS Batch needs before a job can be submitted: made once, kept as told, taken away again."""
