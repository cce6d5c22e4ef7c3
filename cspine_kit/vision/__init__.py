"""Vision: the 2.5D networks. The only room that knows torch and timm."""
