"""Phantom: a synthetic competition in the RSNA 2022 layout. Imports core only."""
