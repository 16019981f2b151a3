"""Layouts: how other libraries name the tensors of each model family and order their axes.

One file per family and one table per layout. No other package contains foreign names.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tljax.errors import UserError
from tljax.models.backbones import get_family
from tljax.weights.layouts import convnext, densenet, efficientnet, inception, resnet, unet, vgg
from tljax.weights.layouts.table import NATIVE, Layout, Rule

FAMILIES = {
    "vgg": vgg,
    "resnet": resnet,
    "densenet": densenet,
    "inception": inception,
    "convnext": convnext,
    "efficientnet": efficientnet,
    "unet": unet,
}

__all__ = ["FAMILIES", "NATIVE", "Layout", "Rule", "detect_layout", "layouts"]


def layouts(family: str, config: Any) -> dict[str, Layout]:
    """Return {name: layout} of a variant; torchvision's comes first if there is one.

    The file of a custom backbone can define `LAYOUTS`, {name: function from the variant to its `Layout`}.

    Raises:
      UserError: a custom backbone has no layouts.
    """
    if family in FAMILIES:
        makers = FAMILIES[family].LAYOUTS
    elif not (makers := getattr(get_family(family), "LAYOUTS", {})):
        raise UserError(
            f"{family} defines no LAYOUTS: its backbones take the weights of finished runs only (workdir:)."
        )
    return {name: make_layout(config) for name, make_layout in makers.items()}


def detect_layout(names: Iterable[str], family: str, config: Any) -> str:
    """Return the name of the variant's layout that recognizes the most of these tensor names."""
    names = list(names)
    candidates = layouts(family, config)
    return min(candidates, key=lambda layout: sum(candidates[layout].rule_for_name(name) is None for name in names))
