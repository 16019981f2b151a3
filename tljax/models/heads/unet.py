"""The decoder of U-Net (Ronneberger et al. 2015, arXiv:1505.04597) on any backbone."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from tljax.errors import UserError, did_you_mean
from tljax.models.heads.base import Head, Shapes, StrideLevel, stride_levels
from tljax.models.layers import BatchNorm, Conv, Dropout
from tljax.models.upsample import ConvTranspose, nearest_upsample, pad_or_crop, resize_bilinear

UPSAMPLE = ("transposed", "bilinear", "nearest")


class Unit(nnx.Module):
    """A 3×3 convolution, an optional BatchNorm, and ReLU."""

    def __init__(self, inputs: int, outputs: int, batch_norm: bool, *, dtype, rngs):
        self.conv = Conv(inputs, outputs, bias=not batch_norm, dtype=dtype, rngs=rngs)
        self.bn = BatchNorm(outputs, dtype=dtype, rngs=rngs) if batch_norm else None

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, in] → [B, H, W, out]."""
        x = self.conv(x)
        return nnx.relu(x if self.bn is None else self.bn(x, train))


class Block(nnx.Module):
    """Two units, the first with `inner` channels."""

    def __init__(self, inputs: int, inner: int, outputs: int, batch_norm: bool, *, dtype, rngs):
        self.unit1 = Unit(inputs, inner, batch_norm, dtype=dtype, rngs=rngs)
        self.unit2 = Unit(inner, outputs, batch_norm, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, in] → [B, H, W, out]."""
        return self.unit2(self.unit1(x, train), train)


class UNet(Head):
    """Blocks from the deepest features up to the side of the input; each doubles the side and has a skip connection.

    There is one skip connection for each stride of the backbone, from its last stage. If the backbone's first features
    are smaller than the input, more blocks without skip connections follow.

    Args:
      shapes: [H, W, C] of every stage's features, in stage order.
      num_classes: number of outputs.
      side: side of the network's input in pixels.
      upsample: "transposed", a 2×2 transposed convolution (the paper); "bilinear", with aligned corners, after blocks
        whose second convolution has the next block's channels (milesial's bilinear=True); "nearest"
        (segmentation_models_pytorch, where the skip's channels are concatenated last, not first).
      channels: of each block, deepest first; empty: those of its skip connection, or half of the previous block's
        without one.
      batch_norm: whether BatchNorm follows each 3×3 convolution, which then has no bias.
      center: whether to add a block on the deepest features (segmentation_models_pytorch on VGG).
      depth: how many of the deepest strides are used; None: all.
      dropout: rate before the last convolution.
      kernel: side of the last convolution's kernel; 3 in segmentation_models_pytorch.
      auxiliary: whether to add 1×1 convolutions `aux1`, ... on all blocks but the last, for training (deep supervision,
        Lee et al. 2015, arXiv:1409.5185).
      dtype: dtype of the computation.
      rngs: required by Flax; initial values come from `tljax.models.initializers`.
    """

    reusable_params = r"(up\d+|block\d+|center)/.*"

    def __init__(
        self,
        shapes: Shapes,
        num_classes: int,
        *,
        side: int,
        upsample: str = "transposed",
        channels: tuple[int, ...] = (),
        batch_norm: bool = True,
        center: bool = False,
        depth: int | None = None,
        dropout: float = 0.0,
        kernel: int = 1,
        auxiliary: bool = False,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        if upsample not in UPSAMPLE:
            raise UserError(f'model.head_options.upsample cannot be "{upsample}"{did_you_mean(upsample, UPSAMPLE)}')
        if kernel % 2 == 0:
            raise UserError(f"model.head_options.kernel must be odd, got {kernel}.")
        levels = _deepest(stride_levels(shapes, side), depth)
        num_without_skip = int(math.log2(levels[-1].stride))
        final_sides = (-(-side // 2**k) for k in reversed(range(num_without_skip)))
        self.side = side
        self.upsample = upsample
        self.deepest = levels[0].stage
        self.skips = (*(level.stage for level in levels[1:]), *(None,) * num_without_skip)
        self.sizes = (*(level.shape[:2] for level in levels[1:]), *((end, end) for end in final_sides))
        skip_channels = [level.shape[2] for level in levels[1:]] + [0] * num_without_skip
        widths = list(channels) or _default_widths(levels, num_without_skip)
        if len(widths) != len(skip_channels):
            raise UserError(
                f"model.head_options.channels has {len(widths)} values, but the decoder has {len(skip_channels)} "
                f"blocks from {self.deepest} up."
            )
        common = {"dtype": dtype, "rngs": rngs}
        inputs = levels[0].shape[2]
        self.center = Block(inputs, inputs, inputs, batch_norm, **common) if center else None
        block_outputs = self._add_blocks(inputs, widths, skip_channels, batch_norm, common)
        self.supervised = auxiliary
        if auxiliary:
            for k, outputs in enumerate(block_outputs[:-1], start=1):
                setattr(self, f"aux{k}", Conv(outputs, num_classes, 1, **common))
        self.drop = Dropout(dropout)
        self.score = Conv(block_outputs[-1] if block_outputs else inputs, num_classes, kernel, **common)

    def _add_blocks(
        self, inputs: int, widths: list[int], skip_channels: list[int], batch_norm: bool, common: dict
    ) -> list[int]:
        """Add `block1`, ... and, if transposed, `up1`, ...; return the output channels of the blocks."""
        block_outputs = []
        for k, (width, skip) in enumerate(zip(widths, skip_channels, strict=True), start=1):
            if self.upsample == "transposed":
                setattr(self, f"up{k}", ConvTranspose(inputs, width, **common))
                inputs = width
            # Interpolation cannot reduce the number of channels, so the previous block does.
            outputs = widths[min(k, len(widths) - 1)] if self.upsample == "bilinear" else width
            setattr(self, f"block{k}", Block(inputs + skip, width, outputs, batch_norm, **common))
            block_outputs.append(outputs)
            inputs = outputs
        return block_outputs

    def __call__(self, features: dict[str, jax.Array], train: bool = False, rngs: nnx.Rngs | None = None):
        """Return logits [B, side, side, num_classes] in at least float32.

        Args:
          features: {stage: [B, H, W, C]}.
          train: whether to use batch statistics and dropout.
          rngs: random keys for dropout in training.

        Returns:
          The logits; in training with auxiliary outputs {"logits": ..., "aux1": ...}, all of the same shape, "aux1" of
          the deepest block. They are computed in the same call, so that the decoder's BatchNorms update their running
          statistics only once per batch.
        """
        x = features[self.deepest]
        if self.center is not None:
            x = self.center(x, train)
        auxiliary = {}
        for k, (stage, size) in enumerate(zip(self.skips, self.sizes, strict=True), start=1):
            x = pad_or_crop(self._upsample(x, k), size)
            if stage is not None:
                inputs = (x, features[stage]) if self.upsample == "nearest" else (features[stage], x)
                x = jnp.concatenate(inputs, -1)
            x = getattr(self, f"block{k}")(x, train)
            if train and self.supervised and k < len(self.skips):
                auxiliary[f"aux{k}"] = self._resize(getattr(self, f"aux{k}")(x))
        logits = self._resize(self.score(self.drop(x, train, rngs)))
        return {"logits": logits} | auxiliary if auxiliary else logits

    @property
    def main_features(self) -> dict[str, None]:
        """The stages that the head reads, at full resolution."""
        return dict.fromkeys((self.deepest, *filter(None, self.skips)))

    def _upsample(self, x: jax.Array, k: int) -> jax.Array:
        if self.upsample == "transposed":
            return getattr(self, f"up{k}")(x)
        if self.upsample == "nearest":
            return nearest_upsample(x)
        return resize_bilinear(x, (2 * x.shape[1], 2 * x.shape[2]), align_corners=True)

    def _resize(self, x: jax.Array) -> jax.Array:
        return resize_bilinear(x.astype(jnp.promote_types(x.dtype, jnp.float32)), (self.side, self.side))


def _deepest(levels: list[StrideLevel], depth: int | None) -> list[StrideLevel]:
    """Return the `depth` deepest levels, or all, deepest first."""
    if depth is not None and not 1 <= depth <= len(levels):
        raise UserError(
            f"model.head_options.depth must be 1 to {len(levels)}, the number of the backbone's strides, got {depth}."
        )
    return levels[::-1][:depth]


def _default_widths(levels: list[StrideLevel], num_without_skip: int) -> list[int]:
    """Return the channels of all blocks: those of the skip connections, then half of the previous block's."""
    widths = [level.shape[2] for level in levels[1:]]
    for _ in range(num_without_skip):
        widths.append(max(1, (widths[-1] if widths else levels[0].shape[2]) // 2))
    return widths
