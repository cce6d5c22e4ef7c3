"""A level finder: vertebra models without a run, and the one that ships."""
