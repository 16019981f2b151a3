"""Numerical operations that do not depend on any model."""
