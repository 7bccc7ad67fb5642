"""The operating system: files, processes, signals, the node's disk."""
