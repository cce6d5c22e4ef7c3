"""Kaggle: the real client, and a push that resumes."""
