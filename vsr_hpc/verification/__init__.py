"""What a true output is, and the checks that prove it."""
