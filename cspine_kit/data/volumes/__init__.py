"""Volumes: a compact array of each study, in memory and in the cache."""
