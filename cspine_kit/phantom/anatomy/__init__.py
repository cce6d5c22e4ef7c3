"""Anatomy: what a patient is made of, as shapes in millimeters, and how it is painted on a grid."""
