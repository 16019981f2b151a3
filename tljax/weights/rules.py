"""Tables that say how foreign tensors are named and laid out; one table a family and layout.

A rule is a pattern on the foreign name (full match), the path in our model with the pattern's groups filled in, and a
transform. Foreign names live in this package and nowhere else.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

TRANSFORMS = {
    "same": lambda x: x,
    "oihw_to_hwio": lambda x: np.transpose(x, (2, 3, 1, 0)),
    "oi_to_io": lambda x: np.transpose(x),
    "chw7_to_io": lambda x: x.reshape(len(x), -1, 7, 7).transpose(2, 3, 1, 0).reshape(-1, len(x)),
}


class Rule(NamedTuple):
    """Foreign name → path, by a transform of `TRANSFORMS`."""

    pattern: str
    path: str
    transform: str = "same"


def conv(name: str, path: str) -> list[Rule]:
    """A torch convolution, its bias included if there is one."""
    return [
        Rule(rf"{name}\.weight", f"{path}/kernel", "oihw_to_hwio"),
        Rule(rf"{name}\.bias", f"{path}/bias"),
    ]


def dense(name: str, path: str) -> list[Rule]:
    """A torch Linear layer."""
    return [Rule(rf"{name}\.weight", f"{path}/kernel", "oi_to_io"), Rule(rf"{name}\.bias", f"{path}/bias")]


def batch_norm(name: str, path: str) -> list[Rule]:
    """A torch BatchNorm with its statistics."""
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    return [Rule(rf"{name}\.{theirs}", f"{path}/{ours}") for theirs, ours in names.items()]


def vgg(config) -> list[Rule]:
    """The table of torchvision's `vgg*`: `features` counts convolutions, ReLUs and pools."""
    rules, index = [], 0
    for block, widths in enumerate(config.blocks, start=1):
        for i in range(len(widths)):
            stage = "stem" if (block, i) == (1, 0) else f"stage{block}"
            rules += conv(rf"features\.{index}", f"{stage}/conv{i + 1}")
            index += 2  # the convolution and its ReLU
        index += 1  # the pool
    # The dense layers stand on 7×7 maps flattened as C, H, W; ours are flattened as H, W, C.
    rules.append(Rule(r"classifier\.0\.weight", "head/hidden0/kernel", "chw7_to_io"))
    return [
        *rules,
        *dense(r"classifier\.0", "head/hidden0"),
        *dense(r"classifier\.3", "head/hidden1"),
        *dense(r"classifier\.6", "head/dense"),
    ]


def resnet(config) -> list[Rule]:
    """The table of torchvision's `resnet*` with basic blocks."""
    block = r"layer(\d+)\.(\d+)"
    return [
        *conv("conv1", "stem/unit/conv"),
        *batch_norm("bn1", "stem/unit/bn"),
        *conv(rf"{block}\.conv(\d)", r"stage\1/block\2/unit\3/conv"),
        *batch_norm(rf"{block}\.bn(\d)", r"stage\1/block\2/unit\3/bn"),
        *conv(rf"{block}\.downsample\.0", r"stage\1/block\2/shortcut/conv"),
        *batch_norm(rf"{block}\.downsample\.1", r"stage\1/block\2/shortcut/bn"),
        *dense("fc", "head/dense"),
    ]


TORCHVISION = {"vgg": vgg, "resnet": resnet}
# torch counts batches for a momentum mode that none of these networks uses.
IGNORE = (r".*\.num_batches_tracked",)
