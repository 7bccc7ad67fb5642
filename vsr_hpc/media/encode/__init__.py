"""Encoders and the segments that they write."""
