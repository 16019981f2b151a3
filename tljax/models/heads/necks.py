"""Necks of a dense detector: what makes maps of few strides and one width of a backbone's maps.

A neck is called as `neck(features, train, rngs)` with the maps [B, H, W, C] by stage, and returns {stride: map}, the
stride in pixels of the input, the finest first. `stages` are those that it looks at, `strides` those of its maps, and
`channels` their width.
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
    """The last map as it is."""

    def __init__(self, shapes: Shapes, side: int):
        stage, (height, _, self.channels) = list(shapes.items())[-1]
        self.stages, self.strides = (stage,), (side / height,)

    def __call__(self, features: Features, train: bool = False, rngs: nnx.Rngs | None = None) -> dict[float, jax.Array]:
        """Maps by stage → [B, H, W, C] of the last."""
        return {self.strides[0]: features[self.stages[0]]}


class DeconvNeck(nnx.Module):
    """The last map at twice its side: a 4×4 transposed convolution of stride 2, BatchNorm and ReLU.

    As in the networks that find people's joints by places (Xiao et al. 2018, arXiv:1804.06208).
    """

    def __init__(self, shapes: Shapes, side: int, channels: int, *, dtype=None, rngs):
        stage, (height, _, inputs) = list(shapes.items())[-1]
        self.stages, self.strides, self.channels = (stage,), (side / height / 2,), channels
        self.up = ConvTranspose(inputs, channels, 4, stride=2, bias=False, dtype=dtype, rngs=rngs)
        self.bn = BatchNorm(channels, dtype=dtype, rngs=rngs)

    def __call__(self, features: Features, train: bool = False, rngs: nnx.Rngs | None = None) -> dict[float, jax.Array]:
        """Maps by stage → [B, 2 H, 2 W, channels]."""
        x = features[self.stages[0]]
        # As torch's with padding 1: what each of the outer places adds beyond the map is cut off.
        y = pad_or_crop(self.up(x), (2 * x.shape[1], 2 * x.shape[2]))
        return {self.strides[0]: nnx.relu(self.bn(y, train))}


class FPN(nnx.Module):
    """A feature pyramid over the deepest strides of a backbone (Lin et al. 2017, arXiv:1612.03144).

    A 1×1 convolution of each map, to which the coarser one, already added up, is added at its side by nearest
    neighbours; then a 3×3 convolution. Each with BatchNorm, which the paper's have not: the maps of networks without
    norms differ in size by orders of magnitude.
    """

    def __init__(self, shapes: Shapes, side: int, channels: int, depth: int, *, dtype=None, rngs):
        found = stride_levels(shapes, side)
        if not 1 <= depth <= len(found):
            raise UserError(
                f"model.head_options.levels must be 1 to {len(found)}, the strides of the backbone's maps, got {depth}."
            )
        taken = found[-depth:]
        self.stages, self.channels = tuple(level.stage for level in taken), channels
        self.strides = tuple(side / level.shape[0] for level in taken)
        for stage, _, (*_, inputs) in taken:
            setattr(self, f"lateral_{stage}", ConvNorm(inputs, channels, 1, dtype=dtype, rngs=rngs))
            setattr(self, f"smooth_{stage}", ConvNorm(channels, channels, dtype=dtype, rngs=rngs))

    def __call__(self, features: Features, train: bool = False, rngs: nnx.Rngs | None = None) -> dict[float, jax.Array]:
        """Maps by stage → [B, H, W, channels] of each level."""
        maps, above = {}, None
        for stride, stage in reversed(list(zip(self.strides, self.stages, strict=True))):
            x = getattr(self, f"lateral_{stage}")(features[stage], train)
            if above is not None:
                height, width = x.shape[1:3]
                x += pad_or_crop(nearest_upsample(above, round(height / above.shape[1])), (height, width))
            above = x
            maps[stride] = getattr(self, f"smooth_{stage}")(above, train)
        return dict(reversed(maps.items()))


class UNetNeck(nnx.Module):
    """The way up of a U-Net (Ronneberger et al. 2015, arXiv:1505.04597) as far as a stride, whose map is its only one.

    At every stride a 2×2 transposed convolution, the backbone's map beside it, and two 3×3 convolutions with BatchNorm
    and ReLU, of as many channels as that map has; `channels` at the last.
    """

    def __init__(self, shapes: Shapes, side: int, channels: int, stride: int, *, dtype=None, rngs):
        found = {level.stride: level for level in reversed(stride_levels(shapes, side))}
        possible = list(found)[1:]
        if stride not in possible:
            raise UserError(
                f"model.head_options.stride must be one that the backbone's maps have before the last, got {stride}; "
                f"there is: {', '.join(map(str, possible)) or 'nothing'}."
            )
        deepest, *others = (level for level in found.values() if level.stride >= stride)
        self.stages = (deepest.stage, *(level.stage for level in others))
        self.strides, self.channels = (side / others[-1].shape[0],), channels
        inputs = deepest.shape[2]
        for stage, here, (*_, beside) in others:
            width = channels if here == stride else beside
            setattr(self, f"up_{stage}", ConvTranspose(inputs, beside, dtype=dtype, rngs=rngs))
            setattr(self, f"block_{stage}", Block(2 * beside, width, width, True, dtype=dtype, rngs=rngs))
            inputs = width

    def __call__(self, features: Features, train: bool = False, rngs: nnx.Rngs | None = None) -> dict[float, jax.Array]:
        """Maps by stage → [B, H, W, channels] at the one stride."""
        deepest, *others = self.stages
        x = features[deepest]
        for stage in others:
            skip = features[stage]
            x = pad_or_crop(getattr(self, f"up_{stage}")(x), skip.shape[1:3])
            x = getattr(self, f"block_{stage}")(jnp.concatenate([skip, x], -1), train)
        return {self.strides[0]: x}
