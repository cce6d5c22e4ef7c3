"""cspine_kit: from CT studies of the neck to a scored submission, in one honest chain."""

__version__ = "0.1.0"
