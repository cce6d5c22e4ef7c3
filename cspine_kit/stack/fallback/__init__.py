"""Fallback: what speaks where a network does not: headers for a study, members for a member."""
