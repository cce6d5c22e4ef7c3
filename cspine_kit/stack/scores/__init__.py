"""Scores: every model beside its baselines, as a table and as pictures."""
