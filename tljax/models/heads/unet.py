"""The expanding path of U-Net (Ronneberger et al. 2015, arXiv:1505.04597), on any backbone's maps."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from tljax.errors import UserError, did_you_mean
from tljax.models.heads.base import Head, Shapes, StrideLevel, stride_levels
from tljax.models.layers import BatchNorm, Conv, Dropout
from tljax.models.upsample import ConvTranspose, bilinear, nearest_upsample, pad_or_crop

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
    """Two units; the first has `inner` channels."""

    def __init__(self, inputs: int, inner: int, outputs: int, batch_norm: bool, *, dtype, rngs):
        self.unit1 = Unit(inputs, inner, batch_norm, dtype=dtype, rngs=rngs)
        self.unit2 = Unit(inner, outputs, batch_norm, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, in] → [B, H, W, out]."""
        return self.unit2(self.unit1(x, train), train)


class UNet(Head):
    """Blocks from the deepest map up to the side of the input; each doubles the side and looks at the map of that side.

    There is one skip for each stride of the backbone, the last map that has it. Where the backbone's first map is
    smaller than the input, further blocks without a skip go on.

    Args:
      shapes: [H, W, C] of every stage's map, in the order of the stages.
      num_classes: outputs.
      side: of the network's input in pixels.
      upsample: "transposed", a 2×2 transposed convolution (the paper); "bilinear", corners on corners, after blocks
        whose second convolution has the next block's channels (milesial's bilinear=True); "nearest"
        (segmentation_models_pytorch, which also has the skip's channels last, not first).
      channels: of each block, the deepest first; empty: as many as its skip has, and half of the block before where it
        has none.
      batch_norm: after each 3×3 convolution, which then has no bias.
      center: a further block on the deepest map (segmentation_models_pytorch on VGG).
      depth: how many of the deepest strides are used; None: all.
      dropout: rate before the last convolution.
      kernel: side of the last convolution; 3 in segmentation_models_pytorch.
      auxiliary: 1×1 convolutions `aux1`, ... on all blocks but the last, for training (deep supervision, Lee et al.
        2015, arXiv:1409.5185).
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
        used = _deepest(stride_levels(shapes, side), depth)
        self.side, self.upsample, self.deepest = side, upsample, used[0].stage
        further = int(math.log2(used[-1].stride))
        self.skips = (*(level.stage for level in used[1:]), *(None,) * further)
        ends = (-(-side // 2**k) for k in reversed(range(further)))
        self.sizes = (*(level.shape[:2] for level in used[1:]), *((end, end) for end in ends))
        beside = [level.shape[2] for level in used[1:]] + [0] * further
        widths = list(channels) or _widths(used, further)
        if len(widths) != len(beside):
            raise UserError(
                f"model.head_options.channels has {len(widths)} numbers, but the decoder has {len(beside)} blocks, up "
                f"from {self.deepest}."
            )
        common = {"dtype": dtype, "rngs": rngs}
        inputs = used[0].shape[2]
        self.center = Block(inputs, inputs, inputs, batch_norm, **common) if center else None
        for k, (width, skip) in enumerate(zip(widths, beside, strict=True), start=1):
            if upsample == "transposed":
                setattr(self, f"up{k}", ConvTranspose(inputs, width, **common))
                inputs = width
            # Interpolation cannot narrow the map: the block before does.
            outputs = widths[min(k, len(widths) - 1)] if upsample == "bilinear" else width
            setattr(self, f"block{k}", Block(inputs + skip, width, outputs, batch_norm, **common))
            inputs = outputs
            if auxiliary and k < len(widths):
                setattr(self, f"aux{k}", Conv(outputs, num_classes, 1, **common))
        self.supervised = auxiliary
        self.drop = Dropout(dropout)
        self.score = Conv(inputs, num_classes, kernel, **common)

    def __call__(self, features: dict[str, jax.Array], train: bool = False, rngs: nnx.Rngs | None = None):
        """Maps [B, H, W, C] by stage → logits [B, side, side, num_classes], float32 at least.

        In training with auxiliary outputs: {"logits": ..., "aux1": ...}, all of that shape, "aux1" of the deepest
        block; they come with the logits, as the decoder's BatchNorms may see a batch but once.
        """
        x, outputs = features[self.deepest], {}
        x = x if self.center is None else self.center(x, train)
        for k, (stage, size) in enumerate(zip(self.skips, self.sizes, strict=True), start=1):
            x = pad_or_crop(self._enlarged(x, k), size)
            if stage is not None:
                both = (x, features[stage]) if self.upsample == "nearest" else (features[stage], x)
                x = jnp.concatenate(both, -1)
            x = getattr(self, f"block{k}")(x, train)
            if train and self.supervised and k < len(self.skips):
                outputs[f"aux{k}"] = self._resized(getattr(self, f"aux{k}")(x))
        logits = self._resized(self.score(self.drop(x, train, rngs)))
        return {"logits": logits} | outputs if outputs else logits

    @property
    def main_features(self) -> dict[str, None]:
        """The stages whose maps are looked at, whole."""
        return dict.fromkeys((self.deepest, *filter(None, self.skips)))

    def _enlarged(self, x: jax.Array, k: int) -> jax.Array:
        if self.upsample == "transposed":
            return getattr(self, f"up{k}")(x)
        return (
            nearest_upsample(x)
            if self.upsample == "nearest"
            else bilinear(x, (2 * x.shape[1], 2 * x.shape[2]), corners=True)
        )

    def _resized(self, x: jax.Array) -> jax.Array:
        return bilinear(x.astype(jnp.promote_types(x.dtype, jnp.float32)), (self.side, self.side))


def _deepest(found: list[StrideLevel], depth: int | None) -> list[StrideLevel]:
    """The levels that are used, the deepest first."""
    if depth is not None and not 1 <= depth <= len(found):
        raise UserError(f"model.head_options.depth must be 1 to {len(found)}, the backbone's strides, got {depth}.")
    return found[::-1][:depth]


def _widths(used: list[StrideLevel], further: int) -> list[int]:
    widths = [level.shape[2] for level in used[1:]]
    for _ in range(further):
        widths.append(max(1, (widths[-1] if widths else used[0].shape[2]) // 2))
    return widths
