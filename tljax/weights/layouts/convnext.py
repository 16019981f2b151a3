"""ConvNeXt in the names of torchvision, timm, and the authors' own checkpoints."""

from __future__ import annotations

from tljax.models.backbones.convnext import Variant
from tljax.weights.layouts.table import Layout, Rule, torch_conv, torch_dense, torch_norm


def torchvision(config: Variant) -> Layout:
    """`convnext_*` of torchvision, which counts stem, stages and the downsampling between them in one row."""
    rules = [*torch_conv("features.0.0", "stem/conv"), *torch_norm("features.0.1", "stem/norm")]
    for k in range(1, len(config.depths) + 1):
        down, block, ours = f"features.{2 * k - 2}", f"features.{2 * k - 1}.{{j}}", f"stage{k}/block{{j}}"
        if k > 1:
            rules += torch_norm(f"{down}.0", f"stage{k}/norm") + torch_conv(f"{down}.1", f"stage{k}/conv")
        rules += torch_conv(f"{block}.block.0", f"{ours}/conv")
        rules += torch_norm(f"{block}.block.2", f"{ours}/norm")
        rules += torch_dense(f"{block}.block.3", f"{ours}/dense1")
        rules += torch_dense(f"{block}.block.5", f"{ours}/dense2")
        rules.append(Rule(f"{block}.layer_scale", f"{ours}/gamma", "c11_to_c"))
    return Layout((*rules, *torch_norm("classifier.0", "head/norm"), *torch_dense("classifier.2", "head/dense")))


def timm(config: Variant) -> Layout:
    """`convnext_*` of timm."""
    rules = [*torch_conv("stem.0", "stem/conv"), *torch_norm("stem.1", "stem/norm")]
    for k in range(len(config.depths)):
        theirs, ours = f"stages.{k}", f"stage{k + 1}"
        if k > 0:
            rules += torch_norm(f"{theirs}.downsample.0", f"{ours}/norm")
            rules += torch_conv(f"{theirs}.downsample.1", f"{ours}/conv")
        rules += _block(f"{theirs}.blocks.{{j}}", f"{ours}/block{{j}}", "conv_dw", "mlp.fc{i}")
    return Layout((*rules, *torch_norm("head.norm", "head/norm"), *torch_dense("head.fc", "head/dense")))


def facebook(config: Variant) -> Layout:
    """The checkpoints of the authors' repository, facebookresearch/ConvNeXt."""
    rules = [*torch_conv("downsample_layers.0.0", "stem/conv"), *torch_norm("downsample_layers.0.1", "stem/norm")]
    for k in range(len(config.depths)):
        if k > 0:
            rules += torch_norm(f"downsample_layers.{k}.0", f"stage{k + 1}/norm")
            rules += torch_conv(f"downsample_layers.{k}.1", f"stage{k + 1}/conv")
        rules += _block(f"stages.{k}.{{j}}", f"stage{k + 1}/block{{j}}", "dwconv", "pwconv{i}")
    return Layout((*rules, *torch_norm("norm", "head/norm"), *torch_dense("head", "head/dense")))


def _block(theirs: str, ours: str, conv: str, dense: str) -> list[Rule]:
    """A block under the two naming schemes that agree on `norm` and `gamma`."""
    return [
        *torch_conv(f"{theirs}.{conv}", f"{ours}/conv"),
        *torch_norm(f"{theirs}.norm", f"{ours}/norm"),
        *torch_dense(f"{theirs}.{dense}", f"{ours}/dense{{i}}"),
        Rule(f"{theirs}.gamma", f"{ours}/gamma"),
    ]


LAYOUTS = {"torchvision": torchvision, "timm": timm, "facebook": facebook}
