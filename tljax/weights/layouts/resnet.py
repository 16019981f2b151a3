"""Layouts of ResNet, ResNeXt and Wide ResNet: torchvision, with the same names as timm, Keras and segmentation."""

from __future__ import annotations

from tljax.models.backbones.resnet import Variant
from tljax.weights.layouts.table import (
    COUNTERS,
    Layout,
    keras_dense,
    keras_norm,
    prefixed,
    smp_unet,
    torch_conv,
    torch_dense,
    torch_norm,
)


def torchvision(config: Variant) -> Layout:
    """Return the layout of `resnet*`, `resnext*` and `wide_resnet*` of torchvision and timm."""
    block = "layer{i}.{j}"
    return Layout(
        (
            *torch_conv("conv1", "stem/unit/conv"),
            *torch_norm("bn1", "stem/unit/bn"),
            *torch_conv(f"{block}.conv{{k}}", "stage{i}/block{j}/unit{k}/conv"),
            *torch_norm(f"{block}.bn{{k}}", "stage{i}/block{j}/unit{k}/bn"),
            *torch_conv(f"{block}.downsample.0", "stage{i}/block{j}/shortcut/conv"),
            *torch_norm(f"{block}.downsample.1", "stage{i}/block{j}/shortcut/bn"),
            *torch_dense("fc", "head/dense"),
        ),
        COUNTERS,
    )


def keras(config: Variant) -> Layout:
    """Return the layout of Keras Applications' `ResNet50`, `ResNet101` and `ResNet152` (version 1)."""
    rules = [*keras_dense("conv1_conv", "stem/unit/conv"), *keras_norm("conv1_bn", "stem/unit/bn")]
    for stage, depth in enumerate(config.depths, start=1):
        for block in range(depth):
            name, path = f"conv{stage + 1}_block{block + 1}", f"stage{stage}/block{block}"
            rules += keras_dense(f"{name}_0_conv", f"{path}/shortcut/conv")
            rules += keras_norm(f"{name}_0_bn", f"{path}/shortcut/bn")
            rules += keras_dense(f"{name}_{{k}}_conv", f"{path}/unit{{k}}/conv")
            rules += keras_norm(f"{name}_{{k}}_bn", f"{path}/unit{{k}}/bn")
    return Layout((*rules, *keras_dense("predictions", "head/dense")))


def smp(config: Variant) -> Layout:
    """Return the layout of segmentation_models_pytorch's `Unet`."""
    return smp_unet(torchvision(config))


def torchvision_fcn(config: Variant) -> Layout:
    """Return the layout of torchvision's `fcn_resnet*`, with the auxiliary classifier."""
    rules = []
    for name, path in (("classifier", "head"), ("aux_classifier", "head/aux1")):
        rules += torch_conv(f"{name}.0", f"{path}/unit/conv") + torch_norm(f"{name}.1", f"{path}/unit/bn")
        rules += torch_conv(f"{name}.4", f"{path}/score")
    return prefixed("backbone.", torchvision(config), rules, (("head", "fcn"), ("variant", "torchvision")))


LAYOUTS = {"torchvision": torchvision, "keras": keras, "smp": smp, "torchvision_fcn": torchvision_fcn}
