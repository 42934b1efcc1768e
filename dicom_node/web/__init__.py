"""The status page: read-only, no script, no patient data."""
