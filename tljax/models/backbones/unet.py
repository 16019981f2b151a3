"""The contracting path of U-Net (Ronneberger et al. 2015, arXiv:1505.04597), with padding and BatchNorm.

The paper's convolutions are unpadded and have no BatchNorm; nearly every U-Net since has both.
"""

from __future__ import annotations

import dataclasses

import jax
from flax import nnx

from tljax.models.layers import TORCH_BN, BatchNormConfig, ConvNorm, Dropout, max_pool


@dataclasses.dataclass(frozen=True)
class Variant:
    """What tells one U-Net from another.

    Attributes:
      widths: channels of each stage, the stem first.
      norm: constants of BatchNorm.
      dropout: rate at the end of the last two stages; 0.5 in the authors' network.
      bias: whether the convolutions have one, as in older checkpoints.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    norm: BatchNormConfig = TORCH_BN
    dropout: float = 0.0
    bias: bool = False


VARIANTS = {
    "unet": Variant(),
    # Under a decoder that resizes bilinearly, which cannot halve the channels on the way up.
    "unet_bilinear": Variant((64, 128, 256, 512, 512)),
}


class DoubleConv(nnx.Module):
    """Two 3×3 convolutions with BatchNorm and ReLU, after an optional 2×2 max pool."""

    def __init__(self, inputs: int, outputs: int, *, pool=False, rate=0.0, common):
        self.pool = pool
        self.unit1 = ConvNorm(inputs, outputs, **common)
        self.unit2 = ConvNorm(outputs, outputs, **common)
        self.drop = Dropout(rate)

    def __call__(self, x: jax.Array, train: bool = False, rngs: nnx.Rngs | None = None) -> jax.Array:
        """[B, H, W, in] → [B, H, W, out], half the side when pooled."""
        x = max_pool(x) if self.pool else x
        x = nnx.relu(self.unit1(x, train))
        x = nnx.relu(self.unit2(x, train))
        return self.drop(x, train, rngs)


def stages(config: Variant, *, inputs: int = 3, dtype=None, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
    """`stem` at the side of the picture, then stage k at half the side of the one before.

    A stage's map is the one before the pool, which a decoder copies across.
    """
    common = {"norm": config.norm, "bias": config.bias, "dtype": dtype, "rngs": rngs}
    channels, *others = config.widths
    built = {"stem": DoubleConv(inputs, channels, common=common)}
    for k, width in enumerate(others, start=1):
        rate = config.dropout if k >= len(others) - 1 else 0.0
        built[f"stage{k}"] = DoubleConv(channels, width, pool=True, rate=rate, common=common)
        channels = width
    return built
