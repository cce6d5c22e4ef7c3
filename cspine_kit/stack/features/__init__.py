"""Features: from slice rows to one row of statistics per level."""
