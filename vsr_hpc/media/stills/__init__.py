"""Single pictures and numbered sequences."""
