"""The encoder of U-Net (Ronneberger et al. 2015, arXiv:1505.04597), with padding and BatchNorm.

The paper's convolutions are unpadded and have no BatchNorm; nearly all later U-Nets have both.
"""

from __future__ import annotations

import dataclasses

import jax
from flax import nnx

from tljax.models.layers import TORCH_BN, BatchNormConfig, ConvNorm, Dropout, max_pool


@dataclasses.dataclass(frozen=True)
class Variant:
    """Architecture of a U-Net encoder.

    Attributes:
      widths: channels of each stage, starting with the stem.
      norm: constants of BatchNorm.
      dropout: rate at the end of the last two stages; 0.5 in the authors' network.
      bias: whether convolutions have a bias, as in older checkpoints.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    norm: BatchNormConfig = TORCH_BN
    dropout: float = 0.0
    bias: bool = False


VARIANTS = {
    "unet": Variant(),
    # For decoders with bilinear upsampling, which cannot halve the number of channels.
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
        """[B, H, W, in] → [B, H, W, out], or half that side with `pool`."""
        x = max_pool(x) if self.pool else x
        x = nnx.relu(self.unit1(x, train))
        x = nnx.relu(self.unit2(x, train))
        return self.drop(x, train, rngs)


def stages(config: Variant, *, inputs: int = 3, dtype=None, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
    """Build the stages: `stem` at the side of the image, then each stage at half the side of the previous.

    Pools are at the start of a stage, so its features are those before the next pool, which skip connections read.
    """
    common = {"norm": config.norm, "bias": config.bias, "dtype": dtype, "rngs": rngs}
    channels, *stage_widths = config.widths
    modules: dict[str, nnx.Module] = {"stem": DoubleConv(inputs, channels, common=common)}
    for k, width in enumerate(stage_widths, start=1):
        rate = config.dropout if k >= len(stage_widths) - 1 else 0.0
        modules[f"stage{k}"] = DoubleConv(channels, width, pool=True, rate=rate, common=common)
        channels = width
    return modules
