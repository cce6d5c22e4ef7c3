"""One change of a config at a time, each scored out-of-fold beside the config as it is."""
