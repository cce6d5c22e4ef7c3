"""What is said of scans, as files for other programs: JSON, CSV, DICOM, NIfTI."""
