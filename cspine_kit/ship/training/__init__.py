"""Training on Kaggle: the dataset that goes there, what a session does, what comes back."""
