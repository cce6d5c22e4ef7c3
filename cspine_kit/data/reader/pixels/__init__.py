"""Pixels: frames decoded to stored values, and what these mean in Hounsfield units."""
