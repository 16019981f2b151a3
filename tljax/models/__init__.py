"""Backbones in stage form, heads, and the flat view of their leaves."""

from tljax.models.factory import Model, create_model, get_variant, init_missing, list_backbones

__all__ = ["Model", "create_model", "get_variant", "init_missing", "list_backbones"]
