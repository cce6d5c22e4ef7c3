"""The training engine: one loop for every kind of network."""
