"""Rehearsal: a bundle run as Kaggle will run it."""
