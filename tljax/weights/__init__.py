"""Pretrained weights: catalog, download, file formats, preprocessing, and strict loading and export."""

from tljax.weights.assign import adapt_channels, assign_weights, export_weights
from tljax.weights.catalog import CATALOG, PretrainedConfig
from tljax.weights.load import WeightSource, load, open_weights, params_hash, resolve_weights
from tljax.weights.preprocess import PRESETS, Preprocess, make_preprocess


def list_weights(pattern: str = "*") -> tuple[PretrainedConfig, ...]:
    """Return the catalog entries whose name matches a shell pattern, e.g. `list_weights("*resnet50*")`."""
    import fnmatch

    return tuple(entry for entry in CATALOG.values() if fnmatch.fnmatch(entry.name, pattern))


__all__ = [
    "CATALOG",
    "PRESETS",
    "Preprocess",
    "PretrainedConfig",
    "WeightSource",
    "adapt_channels",
    "assign_weights",
    "export_weights",
    "list_weights",
    "load",
    "make_preprocess",
    "open_weights",
    "params_hash",
    "resolve_weights",
]
