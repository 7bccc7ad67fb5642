"""Speed and quality of models on this machine, and the demo."""
