"""Networks: backbones, heads, and how they lie on disk."""
