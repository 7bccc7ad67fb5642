"""What runs where the frames are: workers, the pipeline, the merge."""
