"""Bundle: the offline dataset that the kernel reads."""
