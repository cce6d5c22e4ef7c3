"""What networks look at: the data room's tables, units of a study, batches and their changes."""
