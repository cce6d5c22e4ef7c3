"""One task for each kind of network: its heads, its loss, its figures."""
