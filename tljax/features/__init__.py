"""Frozen networks, their cached outputs, and probes on them."""
