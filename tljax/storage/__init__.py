"""Checkpoints, caches and the JSON files of a work directory."""
