"""Scans: which slices belong together, which scan is read, and where its frames lie."""
