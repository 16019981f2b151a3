"""Fully convolutional networks (Long et al. 2015, arXiv:1411.4038), on any backbone's maps."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import jax
import jax.numpy as jnp
from flax import nnx

from tljax.errors import UserError, did_you_mean
from tljax.models import initializers
from tljax.models.heads.base import Head, Shapes, stride_levels
from tljax.models.layers import Conv, ConvNorm, Dropout
from tljax.models.upsample import ConvTranspose, bilinear, pad_or_crop

# How many maps each of the paper's networks scores.
MAPS = {"32s": 1, "16s": 2, "8s": 3}
VARIANTS = (*MAPS, "torchvision")


class FCN(Head):
    """Scores of the deepest map, in the paper's networks joined by those of finer ones, enlarged to the input.

    The authors pad the picture by 100 pixels for the 7×7 convolution to have places left, and crop what comes out by
    offsets that they found for it. Here that convolution is padded itself, and every enlarged map is cropped alike on
    both sides to the size of what it meets, at last the input. All transposed convolutions learn; the authors hold the
    last one still.

    Args:
      shapes: [H, W, C] of every stage's map, in the order of the stages.
      num_classes: outputs.
      side: of the network's input in pixels.
      variant: "32s", "16s" or "8s": a VGG's dense layers as convolutions `fc6` and `fc7`, scores of the deepest one,
        two or three strides (32, 16 and 8 where the backbone ends at 32), and transposed convolutions that start as
        bilinear interpolation. Or "torchvision": one 3×3 convolution with BatchNorm, scores, bilinear interpolation.
      channels: of the inner convolutions; None: 4096, or for "torchvision" a quarter of the map's.
      dropout: rate after each inner convolution; None: 0.5, or for "torchvision" 0.1.
      auxiliary: with "torchvision", the same again on the stage before the last as `aux1`, for training.
    """

    reusable_params = r"(fc6|fc7|(aux\d+/)?unit)/.*"
    weight_aliases = MappingProxyType({"head/hidden0": "head/fc6", "head/hidden1": "head/fc7"})

    def __init__(
        self,
        shapes: Shapes,
        num_classes: int,
        *,
        side: int,
        variant: str = "8s",
        channels: int | None = None,
        dropout: float | None = None,
        auxiliary: bool = False,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        if variant not in VARIANTS:
            raise UserError(f'model.head_options.variant cannot be "{variant}"{did_you_mean(variant, VARIANTS)}')
        self.variant, self.side = variant, side
        common = {"dtype": dtype, "rngs": rngs}
        if variant == "torchvision":
            *others, last = shapes
            self.stages = (last,)
            _narrow(self, shapes[last][2], num_classes, channels, dropout, common)
            if auxiliary:
                self.auxiliary_stages = (("aux1", others[-1]),)
                self.aux1 = Auxiliary(shapes[others[-1]][2], num_classes, side, channels, dropout, common)
            return
        if auxiliary:
            raise UserError(
                f'model.aux_weight: fcn has an auxiliary output with variant="torchvision", not "{variant}".'
            )
        found = stride_levels(shapes, side)[::-1][: MAPS[variant]]
        if len(found) < MAPS[variant]:
            raise UserError(
                f'model.head_options.variant="{variant}" looks at maps of {MAPS[variant]} strides, but the backbone '
                f"has {len(found)}."
            )
        channels = channels or 4096
        self.stages = tuple(level.stage for level in found)
        self.sizes = (*(level.shape[:2] for level in found[1:]), (side, side))
        self.drop = Dropout(0.5 if dropout is None else dropout)
        self.fc6 = Conv(found[0].shape[2], channels, 7, **common)
        self.fc7 = Conv(channels, channels, 1, **common)
        self.score = Conv(channels, num_classes, 1, **common)
        for k, level in enumerate(found[1:], start=1):
            setattr(self, f"score{k}", Conv(level.shape[2], num_classes, 1, **common))
        strides = (2,) * (len(found) - 1) + (found[-1].stride,)
        for k, stride in enumerate(strides, start=1):
            up = ConvTranspose(num_classes, num_classes, 2 * stride, stride=stride, bias=False, **common)
            setattr(self, f"up{k}", up)

    def __call__(self, features: dict[str, jax.Array], train: bool = False, rngs: nnx.Rngs | None = None):
        """Maps [B, H, W, C] by stage → logits [B, side, side, num_classes], float32 at least."""
        if self.variant == "torchvision":
            return _scored(self, features[self.stages[0]], train, rngs)
        x = self.drop(nnx.relu(self.fc6(features[self.stages[0]])), train, rngs)
        x = self.score(self.drop(nnx.relu(self.fc7(x)), train, rngs))
        for k, size in enumerate(self.sizes, start=1):
            x = pad_or_crop(getattr(self, f"up{k}")(x), size)
            if k < len(self.stages):
                x += getattr(self, f"score{k}")(features[self.stages[k]])
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))

    @property
    def initialisers(self) -> dict[str, Callable]:
        """Scores of zero and interpolation, as in the paper."""
        if self.variant == "torchvision":
            return {}
        return {r"head/score\d*/kernel": initializers.zeros, r"head/up\d+/kernel": initializers.bilinear}

    @property
    def main_features(self) -> dict[str, None]:
        """The stages whose maps are looked at, whole."""
        return dict.fromkeys(self.stages)


class Auxiliary(nnx.Module):
    """Torchvision's head, on another stage's map."""

    def __init__(self, inputs: int, num_classes: int, side: int, channels, dropout, common):
        self.side = side
        _narrow(self, inputs, num_classes, channels, dropout, common)

    def __call__(self, x: jax.Array, train: bool = False, rngs: nnx.Rngs | None = None) -> jax.Array:
        """A map [B, H, W, C] → logits [B, side, side, num_classes], float32 at least."""
        return _scored(self, x, train, rngs)


def _narrow(parts: FCN | Auxiliary, inputs: int, num_classes: int, channels, dropout, common) -> None:
    """Gives `parts` the layers of torchvision's FCNHead."""
    width = channels or max(1, inputs // 4)
    parts.unit = ConvNorm(inputs, width, **common)
    parts.drop = Dropout(0.1 if dropout is None else dropout)
    parts.score = Conv(width, num_classes, 1, **common)


def _scored(parts: FCN | Auxiliary, x: jax.Array, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
    x = parts.score(parts.drop(nnx.relu(parts.unit(x, train)), train, rngs))
    return bilinear(x.astype(jnp.promote_types(x.dtype, jnp.float32)), (parts.side, parts.side))
