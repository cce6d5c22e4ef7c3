"""What a bundle is worth on scans of one's own, whose truth is known."""
