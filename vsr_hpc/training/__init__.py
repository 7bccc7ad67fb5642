"""Training of the package's own models, for anyone's images: data, degradation, network, loop, export."""
