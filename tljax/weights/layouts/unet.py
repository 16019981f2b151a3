"""Layout of U-Net: milesial/Pytorch-UNet."""

from __future__ import annotations

from tljax.models.backbones.unet import Variant
from tljax.weights.layouts.table import COUNTERS, Layout, Rule, torch_conv, torch_norm, torch_transposed


def milesial(config: Variant) -> Layout:
    """Return the layout of milesial/Pytorch-UNet's `UNet`; its list of mask values is ignored."""
    rules = [
        *_double("inc.double_conv", "stem"),
        *_double("down{k}.maxpool_conv.1.double_conv", "stage{k}"),
        *torch_transposed("up{k}.up", "head/up{k}"),
        *_double("up{k}.conv.double_conv", "head/block{k}"),
        *torch_conv("outc.conv", "head/score"),
    ]
    return Layout(tuple(rules), (*COUNTERS, "mask_values"), (("upsample", "bilinear"),))


def _double(name: str, path: str) -> list[Rule]:
    """Return the rules of a block of two convolutions."""
    return [
        *torch_conv(f"{name}.0", f"{path}/unit1/conv"),
        *torch_norm(f"{name}.1", f"{path}/unit1/bn"),
        *torch_conv(f"{name}.3", f"{path}/unit2/conv"),
        *torch_norm(f"{name}.4", f"{path}/unit2/bn"),
    ]


LAYOUTS = {"milesial": milesial}
