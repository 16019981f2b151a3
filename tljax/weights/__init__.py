"""Pretrained weights: where they are, what they want to be fed, and a strict way into a model."""

from tljax.weights.catalogue import CATALOGUE
from tljax.weights.load import Weights, find, load, parameters_digest
from tljax.weights.port import port
from tljax.weights.preprocess import PRESETS, Preprocess, make_preprocess

__all__ = [
    "CATALOGUE",
    "PRESETS",
    "Preprocess",
    "Weights",
    "find",
    "load",
    "make_preprocess",
    "parameters_digest",
    "port",
]
