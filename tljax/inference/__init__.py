"""A model with its preprocessing and devices, and its predictions."""
