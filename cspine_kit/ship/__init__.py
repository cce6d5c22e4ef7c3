"""Ship: the bundle, the rehearsal and the push: how a run gets to Kaggle."""
