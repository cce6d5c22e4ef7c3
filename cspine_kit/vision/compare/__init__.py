"""What is worth what: backbones of both stages, detection of boxes, this machine's speed."""
