"""Injuries: fractures, and everything in sound bone that looks like one."""
