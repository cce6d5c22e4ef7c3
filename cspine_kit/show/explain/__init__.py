"""Where levels and suspected fractures lie in a scan: pictures, a turning view, volumes."""
