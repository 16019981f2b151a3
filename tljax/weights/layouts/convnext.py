"""Layouts of ConvNeXt: torchvision, timm, and the authors' checkpoints."""

from __future__ import annotations

from tljax.models.backbones.convnext import Variant
from tljax.weights.layouts.table import Layout, Rule, torch_conv, torch_dense, torch_norm


def torchvision(config: Variant) -> Layout:
    """Return the layout of torchvision's `convnext_*`, which numbers stem, stages and downsampling in one sequence."""
    rules = [*torch_conv("features.0.0", "stem/conv"), *torch_norm("features.0.1", "stem/norm")]
    for k in range(1, len(config.depths) + 1):
        downsample = f"features.{2 * k - 2}"
        block, path = f"features.{2 * k - 1}.{{j}}", f"stage{k}/block{{j}}"
        if k > 1:
            rules += torch_norm(f"{downsample}.0", f"stage{k}/norm") + torch_conv(f"{downsample}.1", f"stage{k}/conv")
        rules += torch_conv(f"{block}.block.0", f"{path}/conv")
        rules += torch_norm(f"{block}.block.2", f"{path}/norm")
        rules += torch_dense(f"{block}.block.3", f"{path}/dense1")
        rules += torch_dense(f"{block}.block.5", f"{path}/dense2")
        rules.append(Rule(f"{block}.layer_scale", f"{path}/gamma", "c11_to_c"))
    return Layout((*rules, *torch_norm("classifier.0", "head/norm"), *torch_dense("classifier.2", "head/dense")))


def timm(config: Variant) -> Layout:
    """Return the layout of timm's `convnext_*`."""
    rules = [*torch_conv("stem.0", "stem/conv"), *torch_norm("stem.1", "stem/norm")]
    for k in range(len(config.depths)):
        name, path = f"stages.{k}", f"stage{k + 1}"
        if k > 0:
            rules += torch_norm(f"{name}.downsample.0", f"{path}/norm")
            rules += torch_conv(f"{name}.downsample.1", f"{path}/conv")
        rules += _block(f"{name}.blocks.{{j}}", f"{path}/block{{j}}", "conv_dw", "mlp.fc{i}")
    return Layout((*rules, *torch_norm("head.norm", "head/norm"), *torch_dense("head.fc", "head/dense")))


def facebook(config: Variant) -> Layout:
    """Return the layout of the checkpoints of facebookresearch/ConvNeXt."""
    rules = [*torch_conv("downsample_layers.0.0", "stem/conv"), *torch_norm("downsample_layers.0.1", "stem/norm")]
    for k in range(len(config.depths)):
        if k > 0:
            rules += torch_norm(f"downsample_layers.{k}.0", f"stage{k + 1}/norm")
            rules += torch_conv(f"downsample_layers.{k}.1", f"stage{k + 1}/conv")
        rules += _block(f"stages.{k}.{{j}}", f"stage{k + 1}/block{{j}}", "dwconv", "pwconv{i}")
    return Layout((*rules, *torch_norm("norm", "head/norm"), *torch_dense("head", "head/dense")))


def _block(name: str, path: str, conv: str, dense: str) -> list[Rule]:
    """Return the rules of a block, for the naming schemes of timm and of the authors."""
    return [
        *torch_conv(f"{name}.{conv}", f"{path}/conv"),
        *torch_norm(f"{name}.norm", f"{path}/norm"),
        *torch_dense(f"{name}.{dense}", f"{path}/dense{{i}}"),
        Rule(f"{name}.gamma", f"{path}/gamma"),
    ]


LAYOUTS = {"torchvision": torchvision, "timm": timm, "facebook": facebook}
