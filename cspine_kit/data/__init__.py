"""Data: from DICOM folders to geometry-true tables and compact volumes."""
