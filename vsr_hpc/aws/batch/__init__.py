"""The installation on AWS Batch that jobs are submitted to: queues, environments and roles."""
