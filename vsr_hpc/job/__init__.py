"""The job that a person writes."""
