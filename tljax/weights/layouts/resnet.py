"""ResNet, ResNeXt and Wide ResNet in the names of torchvision (timm's are the same), Keras, and segmentation models."""

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
    """`resnet*`, `resnext*` and `wide_resnet*` of torchvision and timm."""
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
    """`ResNet50`, `ResNet101` and `ResNet152` of Keras Applications, which are version 1."""
    rules = [*keras_dense("conv1_conv", "stem/unit/conv"), *keras_norm("conv1_bn", "stem/unit/bn")]
    for stage, depth in enumerate(config.depths, start=1):
        for block in range(depth):
            theirs, ours = f"conv{stage + 1}_block{block + 1}", f"stage{stage}/block{block}"
            rules += keras_dense(f"{theirs}_0_conv", f"{ours}/shortcut/conv")
            rules += keras_norm(f"{theirs}_0_bn", f"{ours}/shortcut/bn")
            rules += keras_dense(f"{theirs}_{{k}}_conv", f"{ours}/unit{{k}}/conv")
            rules += keras_norm(f"{theirs}_{{k}}_bn", f"{ours}/unit{{k}}/bn")
    return Layout((*rules, *keras_dense("predictions", "head/dense")))


def smp(config: Variant) -> Layout:
    """`Unet` of segmentation_models_pytorch."""
    return smp_unet(torchvision(config))


def torchvision_fcn(config: Variant) -> Layout:
    """`fcn_resnet*` of torchvision, with the auxiliary classifier."""
    rules = []
    for theirs, ours in (("classifier", "head"), ("aux_classifier", "head/aux1")):
        rules += torch_conv(f"{theirs}.0", f"{ours}/unit/conv") + torch_norm(f"{theirs}.1", f"{ours}/unit/bn")
        rules += torch_conv(f"{theirs}.4", f"{ours}/score")
    return prefixed("backbone.", torchvision(config), rules, (("head", "fcn"), ("variant", "torchvision")))


LAYOUTS = {"torchvision": torchvision, "keras": keras, "smp": smp, "torchvision_fcn": torchvision_fcn}
