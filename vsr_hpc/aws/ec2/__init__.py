"""Fleets of EC2 instances that serve or work."""
