"""Layouts of DenseNet: torchvision, with the same names as timm, and Keras."""

from __future__ import annotations

from tljax.models.backbones.densenet import Variant
from tljax.weights.layouts.table import COUNTERS, Layout, keras_dense, keras_norm, torch_conv, torch_dense, torch_norm


def torchvision(config: Variant) -> Layout:
    """Return the layout of torchvision's and timm's `densenet*`; published files have `norm.1` instead of `norm1`."""
    name, path = "features.denseblock{i}.denselayer{j}", "stage{i}/layer{j}/unit{k}"
    depth = len(config.depths)
    rules = [*torch_conv("features.conv0", "stem/unit/conv"), *torch_norm("features.norm0", "stem/unit/bn")]
    for dot in ("", "."):
        rules += torch_conv(f"{name}.conv{dot}{{k}}", f"{path}/conv")
        rules += torch_norm(f"{name}.norm{dot}{{k}}", f"{path}/bn")
    for k in range(2, depth + 1):
        rules += torch_conv(f"features.transition{k - 1}.conv", f"stage{k}/transition/conv")
        rules += torch_norm(f"features.transition{k - 1}.norm", f"stage{k}/transition/bn")
    rules += torch_norm(f"features.norm{depth + 1}", f"stage{depth}/norm")
    return Layout((*rules, *torch_dense("classifier", "head/dense")), COUNTERS)


def keras(config: Variant) -> Layout:
    """Return the layout of `DenseNet*` of Keras Applications, including the older names of its published files."""
    rules = []
    for stem in ("conv1_", "conv1/"):
        rules += [*keras_dense(f"{stem}conv", "stem/unit/conv"), *keras_norm(f"{stem}bn", "stem/unit/bn")]
    for k in range(1, len(config.depths) + 1):
        name, path = f"conv{k + 1}_block{{j}}", f"stage{k}/layer{{j}}"
        for unit in (1, 2):
            rules += keras_norm(f"{name}_{unit - 1}_bn", f"{path}/unit{unit}/bn")
            rules += keras_dense(f"{name}_{unit}_conv", f"{path}/unit{unit}/conv")
    rules += keras_norm("pool{i}_bn", "stage{i}/transition/bn") + keras_dense(
        "pool{i}_conv", "stage{i}/transition/conv"
    )
    rules += keras_norm("bn", f"stage{len(config.depths)}/norm")
    return Layout((*rules, *keras_dense("predictions", "head/dense"), *keras_dense("fc1000", "head/dense")))


LAYOUTS = {"torchvision": torchvision, "keras": keras}
