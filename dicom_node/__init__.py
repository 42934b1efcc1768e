"""The DICOM node: receives, assembles, decides, delivers."""
