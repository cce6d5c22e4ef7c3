"""Competition: the phantom competition in RSNA 2022's layout, sound and hostile."""
