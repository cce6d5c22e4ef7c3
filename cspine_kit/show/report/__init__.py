"""Report: one page that shows a run, from its data to its kernel, whatever its state."""
