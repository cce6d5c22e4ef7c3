"""A page for one scan on this machine: drop it, see what is said of it, leave nothing behind."""
