"""Model: the heads that learn from features, their calibration and their blends."""
