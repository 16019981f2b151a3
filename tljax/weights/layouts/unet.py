"""U-Net in the names of milesial/Pytorch-UNet."""

from __future__ import annotations

from tljax.models.backbones.unet import Variant
from tljax.weights.layouts.table import COUNTERS, Layout, Rule, torch_conv, torch_norm, torch_transposed


def milesial(config: Variant) -> Layout:
    """`UNet` of milesial/Pytorch-UNet; the list of its masks' grey values is not read."""
    rules = [
        *_double("inc.double_conv", "stem"),
        *_double("down{k}.maxpool_conv.1.double_conv", "stage{k}"),
        *torch_transposed("up{k}.up", "head/up{k}"),
        *_double("up{k}.conv.double_conv", "head/block{k}"),
        *torch_conv("outc.conv", "head/score"),
    ]
    return Layout(tuple(rules), (*COUNTERS, "mask_values"), (("upsample", "bilinear"),))


def _double(theirs: str, ours: str) -> list[Rule]:
    return [
        *torch_conv(f"{theirs}.0", f"{ours}/unit1/conv"),
        *torch_norm(f"{theirs}.1", f"{ours}/unit1/bn"),
        *torch_conv(f"{theirs}.3", f"{ours}/unit2/conv"),
        *torch_norm(f"{theirs}.4", f"{ours}/unit2/bn"),
    ]


LAYOUTS = {"milesial": milesial}
