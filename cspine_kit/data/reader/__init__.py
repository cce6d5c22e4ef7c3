"""Reader: DICOM files to one geometrically true study in Hounsfield units."""
