"""How other libraries name and lay out the tensors of our models: one file a family, one table a layout.

Foreign names live in this package and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tljax.weights.layouts import convnext, densenet, inception, resnet, unet, vgg
from tljax.weights.layouts.table import NATIVE, Layout, Rule

FAMILIES = {
    "vgg": vgg,
    "resnet": resnet,
    "densenet": densenet,
    "inception": inception,
    "convnext": convnext,
    "unet": unet,
}

__all__ = ["FAMILIES", "NATIVE", "Layout", "Rule", "detect_layout", "layouts"]


def layouts(family: str, config: Any) -> dict[str, Layout]:
    """Every layout of a variant by name; the first is torchvision's where there is one."""
    return {name: make(config) for name, make in FAMILIES[family].LAYOUTS.items()}


def detect_layout(names: Iterable[str], family: str, config: Any) -> str:
    """The layout that leaves the fewest of these tensor names without a place."""
    names, known = list(names), layouts(family, config)
    return min(known, key=lambda layout: sum(known[layout].place(name) is None for name in names))
