"""How a run lies in its store."""
