"""Scanner: what part of a patient is scanned, how it looks, and the DICOM files it leaves."""
