"""Infer: the inference that Kaggle runs, and the levels of one study. Draws nothing."""
