"""Pretrained weights: where they are, what they want to be fed, and a strict way into a model and out of it."""

from tljax.weights.assign import adapt_channels, assign_weights, export
from tljax.weights.catalog import CATALOG, PretrainedConfig
from tljax.weights.load import WeightSource, load, open_weights, params_hash, resolve_weights
from tljax.weights.preprocess import PRESETS, Preprocess, make_preprocess


def list(pattern: str = "*") -> tuple[PretrainedConfig, ...]:
    """The known weights whose name matches a shell pattern, e.g. `tljax.weights.list("*resnet50*")`."""
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
    "export",
    "list",
    "load",
    "make_preprocess",
    "open_weights",
    "params_hash",
    "resolve_weights",
]
