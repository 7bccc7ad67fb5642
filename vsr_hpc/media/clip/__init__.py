"""What a clip is, and its exact frames."""
