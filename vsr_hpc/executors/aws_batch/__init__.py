"""Workers as array jobs of AWS Batch."""
