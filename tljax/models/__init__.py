"""Models: backbones as a sequence of stages, heads, and their variables as flat dicts."""

from tljax.models.factory import Model, create_model, get_variant, init_missing, list_backbones

__all__ = ["Model", "create_model", "get_variant", "init_missing", "list_backbones"]
