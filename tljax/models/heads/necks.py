"""Necks of a dense detector: features of a few strides and equal width, computed from a backbone's features.

A neck is called as `neck(features, train, rngs)` with features {stage: [B, H, W, C]} and returns
{stride: [B, h, w, channels]}, with the stride in input pixels, finest first. Its attributes are `stages`, the stages
that it reads, and `strides` and `channels` of its outputs.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from tljax.errors import UserError
from tljax.models.heads.base import Shapes, stride_levels
from tljax.models.heads.unet import Block
from tljax.models.layers import BatchNorm, ConvNorm
from tljax.models.upsample import ConvTranspose, nearest_upsample, pad_or_crop

Features = dict[str, jax.Array]


class IdentityNeck(nnx.Module):
    """The last stage's features, unchanged."""

    def __init__(self, shapes: Shapes, side: int):
        stage, (height, _, self.channels) = list(shapes.items())[-1]
        self.stages = (stage,)
        self.strides = (side / height,)

    def __call__(self, features: Features, train: bool = False, rngs: nnx.Rngs | None = None) -> dict[float, jax.Array]:
        """Return {stride: [B, H, W, C]} of the last stage."""
        return {self.strides[0]: features[self.stages[0]]}


class DeconvNeck(nnx.Module):
    """The last stage's features at twice their side: a 4×4 transposed convolution of stride 2, BatchNorm and ReLU.

    As in Simple Baselines for human pose estimation (Xiao et al. 2018, arXiv:1804.06208).
    """

    def __init__(self, shapes: Shapes, side: int, channels: int, *, dtype=None, rngs):
        stage, (height, _, inputs) = list(shapes.items())[-1]
        self.stages = (stage,)
        self.strides = (side / height / 2,)
        self.channels = channels
        self.up = ConvTranspose(inputs, channels, 4, stride=2, bias=False, dtype=dtype, rngs=rngs)
        self.bn = BatchNorm(channels, dtype=dtype, rngs=rngs)

    def __call__(self, features: Features, train: bool = False, rngs: nnx.Rngs | None = None) -> dict[float, jax.Array]:
        """Return {stride: [B, 2 H, 2 W, channels]}."""
        x = features[self.stages[0]]
        # Same as torch's padding=1: crop the border that the outermost locations add.
        y = pad_or_crop(self.up(x), (2 * x.shape[1], 2 * x.shape[2]))
        return {self.strides[0]: nnx.relu(self.bn(y, train))}


class FPN(nnx.Module):
    """A feature pyramid on the deepest strides of a backbone (Lin et al. 2017, arXiv:1612.03144).

    A 1×1 convolution of each stage's features, to which the sum of the next coarser level is added after
    nearest-neighbor upsampling; then a 3×3 convolution. Unlike in the paper, each has BatchNorm: features of networks
    without norms differ in scale by orders of magnitude.
    """

    def __init__(self, shapes: Shapes, side: int, channels: int, depth: int, *, dtype=None, rngs):
        levels = stride_levels(shapes, side)
        if not 1 <= depth <= len(levels):
            raise UserError(
                f"model.head_options.levels must be 1 to {len(levels)}, the number of the backbone's strides, "
                f"got {depth}."
            )
        levels = levels[-depth:]
        self.stages = tuple(level.stage for level in levels)
        self.strides = tuple(side / level.shape[0] for level in levels)
        self.channels = channels
        for stage, _, (*_, inputs) in levels:
            setattr(self, f"lateral_{stage}", ConvNorm(inputs, channels, 1, dtype=dtype, rngs=rngs))
            setattr(self, f"smooth_{stage}", ConvNorm(channels, channels, dtype=dtype, rngs=rngs))

    def __call__(self, features: Features, train: bool = False, rngs: nnx.Rngs | None = None) -> dict[float, jax.Array]:
        """Return {stride: [B, H, W, channels]} of all levels."""
        pyramid = {}
        coarser = None
        for stride, stage in reversed(list(zip(self.strides, self.stages, strict=True))):
            x = getattr(self, f"lateral_{stage}")(features[stage], train)
            if coarser is not None:
                height, width = x.shape[1:3]
                x += pad_or_crop(nearest_upsample(coarser, round(height / coarser.shape[1])), (height, width))
            coarser = x
            pyramid[stride] = getattr(self, f"smooth_{stage}")(x, train)
        return dict(reversed(pyramid.items()))


class UNetNeck(nnx.Module):
    """The decoder of a U-Net (Ronneberger et al. 2015, arXiv:1505.04597) up to one stride, its only output.

    Each stride has a 2×2 transposed convolution, concatenation with the backbone's features, and two 3×3 convolutions
    with BatchNorm and ReLU, of as many channels as the backbone's features there, or `channels` at the last stride.
    """

    def __init__(self, shapes: Shapes, side: int, channels: int, stride: int, *, dtype=None, rngs):
        levels = {level.stride: level for level in reversed(stride_levels(shapes, side))}
        possible = list(levels)[1:]
        if stride not in possible:
            raise UserError(
                f"model.head_options.stride must be a stride of the backbone before its last, got {stride}; "
                f"there is: {', '.join(map(str, possible)) or 'nothing'}."
            )
        deepest, *finer = (level for level in levels.values() if level.stride >= stride)
        self.stages = (deepest.stage, *(level.stage for level in finer))
        self.strides = (side / finer[-1].shape[0],)
        self.channels = channels
        inputs = deepest.shape[2]
        for stage, level_stride, (*_, skip_channels) in finer:
            width = channels if level_stride == stride else skip_channels
            setattr(self, f"up_{stage}", ConvTranspose(inputs, skip_channels, dtype=dtype, rngs=rngs))
            setattr(self, f"block_{stage}", Block(2 * skip_channels, width, width, True, dtype=dtype, rngs=rngs))
            inputs = width

    def __call__(self, features: Features, train: bool = False, rngs: nnx.Rngs | None = None) -> dict[float, jax.Array]:
        """Return {stride: [B, H, W, channels]} of one level."""
        deepest, *finer = self.stages
        x = features[deepest]
        for stage in finer:
            skip = features[stage]
            x = pad_or_crop(getattr(self, f"up_{stage}")(x), skip.shape[1:3])
            x = getattr(self, f"block_{stage}")(jnp.concatenate([skip, x], -1), train)
        return {self.strides[0]: x}
