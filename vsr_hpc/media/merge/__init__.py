"""Joins segments and the other streams of the source into the output."""
