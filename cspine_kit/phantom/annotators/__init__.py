"""Annotators: boxes around fractures and masks of vertebrae, with their makers' habits."""
