"""Pretrained weights: where they are, what they want to be fed, and a strict way into a model and out of it."""

from tljax.weights.assign import adapt_channels, export, port
from tljax.weights.catalog import CATALOG, Entry
from tljax.weights.load import Weights, find, load, open_weights, parameters_digest
from tljax.weights.preprocess import PRESETS, Preprocess, make_preprocess


def list(pattern: str = "*") -> tuple[Entry, ...]:
    """The known weights whose name matches a shell pattern, e.g. `tljax.weights.list("*resnet50*")`."""
    import fnmatch

    return tuple(entry for entry in CATALOG.values() if fnmatch.fnmatch(entry.name, pattern))


__all__ = [
    "CATALOG",
    "PRESETS",
    "Entry",
    "Preprocess",
    "Weights",
    "adapt_channels",
    "export",
    "find",
    "list",
    "load",
    "make_preprocess",
    "open_weights",
    "parameters_digest",
    "port",
]
