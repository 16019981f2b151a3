"""Data sources: one file a format."""
