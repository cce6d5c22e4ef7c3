"""The out-of-fold run: keys of a fold's artifacts, steps that make them, who may not see what."""
