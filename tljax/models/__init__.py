"""Backbones in stage form, heads, and the flat view of their leaves."""

from tljax.models.factory import Model, build, find, initialise, names

__all__ = ["Model", "build", "find", "initialise", "names"]
