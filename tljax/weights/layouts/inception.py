"""Layouts of GoogLeNet and Inception v3: torchvision, with the same names as timm's Inception v3, and Keras."""

from __future__ import annotations

from collections.abc import Iterator

from tljax.models.backbones.inception import Conv, Step, Variant, unit_names
from tljax.weights.layouts.table import (
    COUNTERS,
    Layout,
    Rule,
    keras_dense,
    keras_norm,
    torch_conv,
    torch_dense,
    torch_norm,
)

# torchvision's names of the convolutions in the order of construction, which is the same in all libraries.
_V1_BLOCK = ("branch1", "branch2.0", "branch2.1", "branch3.0", "branch3.1", "branch4.1")
_V1_BLOCKS = ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
_V1 = ("conv1", "conv2", "conv3", *(f"inception{b}.{n}" for b in _V1_BLOCKS for n in _V1_BLOCK))

_DOUBLE = ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
_V3_BLOCKS = {
    "5b 5c 5d": ("branch1x1", "branch5x5_1", "branch5x5_2", *_DOUBLE, "branch_pool"),
    "6a": ("branch3x3", *_DOUBLE),
    "6b 6c 6d 6e": (
        "branch1x1",
        *(f"branch7x7_{k}" for k in (1, 2, 3)),
        *(f"branch7x7dbl_{k}" for k in (1, 2, 3, 4, 5)),
        "branch_pool",
    ),
    "7a": ("branch3x3_1", "branch3x3_2", *(f"branch7x7x3_{k}" for k in (1, 2, 3, 4))),
    "7b 7c": (
        "branch1x1",
        *(f"branch3x3_{k}" for k in ("1", "2a", "2b")),
        *(f"branch3x3dbl_{k}" for k in ("1", "2", "3a", "3b")),
        "branch_pool",
    ),
}
_V3 = (
    *(f"Conv2d_{k}" for k in ("1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3")),
    *(f"Mixed_{b}.{n}" for blocks, names in _V3_BLOCKS.items() for b in blocks.split() for n in names),
)


def _units(steps: tuple[Step, ...], path: str) -> Iterator[str]:
    """Yield the paths of the units (convolution and norm) of a chain, in the order of construction."""
    for name, step in unit_names(steps):
        if isinstance(step, Conv):
            yield f"{path}/{name}"
        elif isinstance(step, tuple):
            for k, branch in enumerate(step, start=1):
                yield from _units(branch, f"{path}/{name}/branch{k}")


def _backbone_units(config: Variant) -> list[str]:
    """Return the paths of the units of all stages, in the order of construction."""
    return [unit for k, steps in enumerate(config.stages) for unit in _units(steps, f"stage{k}" if k else "stem")]


def _torch_unit(name: str, path: str) -> list[Rule]:
    return torch_conv(f"{name}.conv", f"{path}/conv") + torch_norm(f"{name}.bn", f"{path}/bn")


def torchvision(config: Variant) -> Layout:
    """Return the layout of torchvision's `googlenet` and `inception_v3`, with their auxiliary classifiers."""
    if config.version == 1:
        names = _V1
        heads = [
            *_torch_unit("aux{k}.conv", "head/aux{k}/chain/unit1"),
            *torch_dense("aux{k}.fc1", "head/aux{k}/hidden", "chw4_to_io"),
            *torch_dense("aux{k}.fc2", "head/aux{k}/dense"),
        ]
    else:
        names = _V3
        heads = [
            *_torch_unit("AuxLogits.conv0", "head/aux1/chain/unit1"),
            *_torch_unit("AuxLogits.conv1", "head/aux1/chain/unit2"),
            *torch_dense("AuxLogits.fc", "head/aux1/dense"),
        ]
    units = zip(names, _backbone_units(config), strict=False)
    rules = [rule for name, path in units for rule in _torch_unit(name, path)]
    return Layout((*rules, *heads, *torch_dense("fc", "head/dense")), COUNTERS)


def keras(config: Variant) -> Layout:
    """Return the layout of Keras Applications' `InceptionV3`, whose published files number the layers from one."""
    rules = []
    for k, path in enumerate(_backbone_units(config), start=1):
        rules += keras_dense(f"conv2d_{k}", f"{path}/conv") + keras_norm(f"batch_normalization_{k}", f"{path}/bn")
    return Layout((*rules, *keras_dense("predictions", "head/dense")))


LAYOUTS = {"torchvision": torchvision, "keras": keras}
