"""Headers: the two header-only baselines that a user runs on tables."""
