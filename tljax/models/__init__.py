"""Models: backbones as a sequence of stages, heads, and their variables as flat dicts."""

from tljax.models.factory import create_model, get_variant, init_missing, list_backbones
from tljax.models.model import Model

__all__ = ["Model", "create_model", "get_variant", "init_missing", "list_backbones"]
