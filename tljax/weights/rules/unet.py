"""U-Net's contracting path in the names of milesial/Pytorch-UNet."""

from __future__ import annotations

from tljax.models.unet import Variant
from tljax.weights.rules.table import COUNTERS, Layout, Rule, torch_conv, torch_norm


def milesial(config: Variant) -> Layout:
    """`UNet` of milesial/Pytorch-UNet; its decoder is not read, nor is the list of its masks' grey values."""
    rules = _double("inc.double_conv", "stem") + _double("down{k}.maxpool_conv.1.double_conv", "stage{k}")
    return Layout(tuple(rules), (*COUNTERS, r"up\d+\..*", r"outc\..*", "mask_values"))


def _double(theirs: str, ours: str) -> list[Rule]:
    return [
        *torch_conv(f"{theirs}.0", f"{ours}/unit1/conv"),
        *torch_norm(f"{theirs}.1", f"{ours}/unit1/bn"),
        *torch_conv(f"{theirs}.3", f"{ours}/unit2/conv"),
        *torch_norm(f"{theirs}.4", f"{ours}/unit2/bn"),
    ]


LAYOUTS = {"milesial": milesial}
