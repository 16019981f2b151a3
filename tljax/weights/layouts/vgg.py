"""Layouts of VGG: torchvision, timm, Keras and segmentation_models_pytorch."""

from __future__ import annotations

from collections.abc import Iterator

from tljax.models.backbones.vgg import Variant
from tljax.weights.layouts.table import (
    COUNTERS,
    Layout,
    Rule,
    keras_dense,
    smp_unet,
    torch_conv,
    torch_dense,
    torch_norm,
)


def _convs(config: Variant) -> Iterator[tuple[int, int, str]]:
    """Yield (block, number in the block, path) of every convolution."""
    for block, widths in enumerate(config.blocks, start=1):
        for i in range(1, len(widths) + 1):
            yield block, i, f"{'stem' if (block, i) == (1, 1) else f'stage{block}'}/conv{i}"


def _features(config: Variant) -> list[Rule]:
    """Return the rules of `features` in torchvision and timm, which counts convolutions, norms, ReLUs and pools."""
    rules = []
    index = 0
    previous_block = 1
    for block, _, path in _convs(config):
        if block != previous_block:
            index += 1  # the pool
        previous_block = block
        if config.norm is None:
            rules += torch_conv(f"features.{index}", path)
            index += 2
        else:
            rules += torch_conv(f"features.{index}", f"{path}/conv") + torch_norm(f"features.{index + 1}", f"{path}/bn")
            index += 3
    return rules


def torchvision(config: Variant) -> Layout:
    """Return the layout of torchvision's `vgg*`."""
    head = [
        *torch_dense("classifier.0", "head/hidden0", "chw7_to_io"),
        *torch_dense("classifier.3", "head/hidden1"),
        *torch_dense("classifier.6", "head/dense"),
    ]
    return Layout((*_features(config), *head), COUNTERS)


def timm(config: Variant) -> Layout:
    """Return the layout of timm's `vgg*`, whose dense layers are convolutions."""
    head = [
        *torch_dense("pre_logits.fc1", "head/hidden0", "oi77_to_io"),
        *torch_dense("pre_logits.fc2", "head/hidden1", "oi11_to_io"),
        *torch_dense("head.fc", "head/dense"),
    ]
    return Layout((*_features(config), *head), COUNTERS)


def keras(config: Variant) -> Layout:
    """Return the layout of Keras Applications' `VGG16` and `VGG19`."""
    rules = []
    for block, i, path in _convs(config):
        rules += keras_dense(f"block{block}_conv{i}", path)
    for name, layer in (("fc1", "hidden0"), ("fc2", "hidden1"), ("predictions", "dense")):
        rules += keras_dense(name, f"head/{layer}")
    return Layout(tuple(rules))


def smp(config: Variant) -> Layout:
    """Return the layout of segmentation_models_pytorch's `Unet`, which does not use the features at stride 1."""
    return smp_unet(Layout(tuple(_features(config)), COUNTERS), (("depth", len(config.blocks)),))


LAYOUTS = {"torchvision": torchvision, "timm": timm, "keras": keras, "smp": smp}
