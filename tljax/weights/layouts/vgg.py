"""VGG in the names of torchvision, timm, Keras and segmentation_models_pytorch."""

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
    """Block, number within the block, and path of every convolution."""
    for block, widths in enumerate(config.blocks, start=1):
        for i in range(1, len(widths) + 1):
            yield block, i, f"{'stem' if (block, i) == (1, 1) else f'stage{block}'}/conv{i}"


def _features(config: Variant) -> list[Rule]:
    """Torchvision's and timm's `features`, which counts convolutions, norms, ReLUs and pools."""
    rules, index, last = [], 0, 1
    for block, _, path in _convs(config):
        index, last = index + (block != last), block  # the pool
        if config.norm is None:
            rules += torch_conv(f"features.{index}", path)
            index += 2
        else:
            rules += torch_conv(f"features.{index}", f"{path}/conv") + torch_norm(f"features.{index + 1}", f"{path}/bn")
            index += 3
    return rules


def torchvision(config: Variant) -> Layout:
    """`vgg*` of torchvision."""
    head = [
        *torch_dense("classifier.0", "head/hidden0", "chw7_to_io"),
        *torch_dense("classifier.3", "head/hidden1"),
        *torch_dense("classifier.6", "head/dense"),
    ]
    return Layout((*_features(config), *head), COUNTERS)


def timm(config: Variant) -> Layout:
    """`vgg*` of timm, whose dense layers are convolutions."""
    head = [
        *torch_dense("pre_logits.fc1", "head/hidden0", "oi77_to_io"),
        *torch_dense("pre_logits.fc2", "head/hidden1", "oi11_to_io"),
        *torch_dense("head.fc", "head/dense"),
    ]
    return Layout((*_features(config), *head), COUNTERS)


def keras(config: Variant) -> Layout:
    """`VGG16` and `VGG19` of Keras Applications."""
    rules = [r for b, i, path in _convs(config) for r in keras_dense(f"block{b}_conv{i}", path)]
    head = {"fc1": "hidden0", "fc2": "hidden1", "predictions": "dense"}
    return Layout((*rules, *(r for theirs, ours in head.items() for r in keras_dense(theirs, f"head/{ours}"))))


def smp(config: Variant) -> Layout:
    """`Unet` of segmentation_models_pytorch, which makes nothing of the map at stride 1."""
    return smp_unet(Layout(tuple(_features(config)), COUNTERS), (("depth", len(config.blocks)),))


LAYOUTS = {"torchvision": torchvision, "timm": timm, "keras": keras, "smp": smp}
