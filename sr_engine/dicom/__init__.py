"""DICOM in and out: reader, derived-series writer, identifiers, provenance.

Nothing is imported here, because the service reads `provenance` without highdicom.
"""
