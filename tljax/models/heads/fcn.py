"""The head of fully convolutional networks (Long et al. 2015, arXiv:1411.4038) on any backbone."""

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
from tljax.models.upsample import ConvTranspose, pad_or_crop, resize_bilinear

# Number of strides that each of the paper's networks predicts scores from.
NUM_STRIDES = {"32s": 1, "16s": 2, "8s": 3}
VARIANTS = (*NUM_STRIDES, "torchvision")


class FCN(Head):
    """Class scores of the deepest features, in the paper's variants added to those of finer ones, at the input's size.

    The authors pad the image by 100 pixels, so that the unpadded 7×7 convolution has an output, and crop the result by
    hand-tuned offsets. Here that convolution is padded, and every upsampled score map is cropped equally on both sides
    to the size of the scores that it is added to, and finally to the input. All transposed convolutions are trainable;
    the authors freeze the last one.

    Args:
      shapes: [H, W, C] of every stage's features, in stage order.
      num_classes: number of outputs.
      side: side of the network's input in pixels.
      variant: "32s", "16s" or "8s": VGG's dense layers as convolutions `fc6` and `fc7`, scores of the deepest one, two
        or three strides (32, 16 and 8 for a backbone that ends at 32), and transposed convolutions initialized to
        bilinear interpolation. "torchvision": one 3×3 convolution with BatchNorm, scores, bilinear interpolation.
      channels: of the inner convolutions; None: 4096, or for "torchvision" a quarter of the features' channels.
      dropout: rate after each inner convolution; None: 0.5, or for "torchvision" 0.1.
      auxiliary: with "torchvision", add the same head on the stage before the last as `aux1`, for training.
      dtype: dtype of the computation.
      rngs: required by Flax; initial values come from `tljax.models.initializers`.
    """

    reusable_params = r"(fc6|fc7|(aux\d+/)?unit)/.*"
    weight_aliases = MappingProxyType({"head/hidden0": "head/fc6", "head/hidden1": "head/fc7"})
    unit: ConvNorm

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
        self.variant = variant
        self.side = side
        common = {"dtype": dtype, "rngs": rngs}
        if variant == "torchvision":
            *others, last = shapes
            self.stages = (last,)
            _add_layers(self, shapes[last][2], num_classes, channels, dropout, common)
            if auxiliary:
                self.auxiliary_stages = (("aux1", others[-1]),)
                self.aux1 = AuxiliaryFCN(shapes[others[-1]][2], num_classes, side, channels, dropout, common)
            return
        if auxiliary:
            raise UserError(
                f'model.aux_weight: fcn has an auxiliary output with variant="torchvision", not "{variant}".'
            )
        levels = stride_levels(shapes, side)[::-1][: NUM_STRIDES[variant]]
        if len(levels) < NUM_STRIDES[variant]:
            raise UserError(
                f'model.head_options.variant="{variant}" needs features of {NUM_STRIDES[variant]} strides, but the '
                f"backbone has {len(levels)}."
            )
        channels = channels or 4096
        self.stages = tuple(level.stage for level in levels)
        self.sizes = (*(level.shape[:2] for level in levels[1:]), (side, side))
        self.drop = Dropout(0.5 if dropout is None else dropout)
        self.fc6 = Conv(levels[0].shape[2], channels, 7, **common)
        self.fc7 = Conv(channels, channels, 1, **common)
        self.score = Conv(channels, num_classes, 1, **common)
        for k, level in enumerate(levels[1:], start=1):
            setattr(self, f"score{k}", Conv(level.shape[2], num_classes, 1, **common))
        strides = (2,) * (len(levels) - 1) + (levels[-1].stride,)
        for k, stride in enumerate(strides, start=1):
            up = ConvTranspose(num_classes, num_classes, 2 * stride, stride=stride, bias=False, **common)
            setattr(self, f"up{k}", up)

    def __call__(self, features: dict[str, jax.Array], train: bool = False, rngs: nnx.Rngs | None = None):
        """Return logits [B, side, side, num_classes] in at least float32 for features {stage: [B, H, W, C]}."""
        if self.variant == "torchvision":
            return _predict(self, features[self.stages[0]], train, rngs)
        x = self.drop(nnx.relu(self.fc6(features[self.stages[0]])), train, rngs)
        x = self.score(self.drop(nnx.relu(self.fc7(x)), train, rngs))
        for k, size in enumerate(self.sizes, start=1):
            x = pad_or_crop(getattr(self, f"up{k}")(x), size)
            if k < len(self.stages):
                x += getattr(self, f"score{k}")(features[self.stages[k]])
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))

    @property
    def initializers(self) -> dict[str, Callable]:
        """Scores of zero and bilinear interpolation, as in the paper."""
        if self.variant == "torchvision":
            return {}
        return {r"head/score\d*/kernel": initializers.zeros, r"head/up\d+/kernel": initializers.bilinear}

    @property
    def main_features(self) -> dict[str, None]:
        """The stages that the head reads, at full resolution."""
        return dict.fromkeys(self.stages)


class AuxiliaryFCN(nnx.Module):
    """The head of variant "torchvision" on another stage."""

    unit: ConvNorm
    drop: Dropout
    score: Conv

    def __init__(self, inputs: int, num_classes: int, side: int, channels, dropout, common):
        self.side = side
        _add_layers(self, inputs, num_classes, channels, dropout, common)

    def __call__(self, x: jax.Array, train: bool = False, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Return logits [B, side, side, num_classes] in at least float32 for one stage's features [B, H, W, C]."""
        return _predict(self, x, train, rngs)


def _add_layers(module: FCN | AuxiliaryFCN, inputs: int, num_classes: int, channels, dropout, common) -> None:
    """Add the layers of torchvision's FCNHead to `module`."""
    width = channels or max(1, inputs // 4)
    module.unit = ConvNorm(inputs, width, **common)
    module.drop = Dropout(0.1 if dropout is None else dropout)
    module.score = Conv(width, num_classes, 1, **common)


def _predict(module: FCN | AuxiliaryFCN, x: jax.Array, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
    x = module.score(module.drop(nnx.relu(module.unit(x, train)), train, rngs))
    return resize_bilinear(x.astype(jnp.promote_types(x.dtype, jnp.float32)), (module.side, module.side))
