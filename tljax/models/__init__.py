"""Backbones in stage form, heads, and the flat view of their leaves."""

from tljax.models.factory import Model, build, find, init_missing, names

__all__ = ["Model", "build", "find", "init_missing", "names"]
