"""ConvNeXt (Liu et al. 2022, arXiv:2201.03545): a residual network with the proportions of a vision transformer.

A block is a depthwise 7×7 convolution, LayerNorm, and two dense layers with GELU between them; each channel is scaled
by `gamma`. The LayerNorm after the last stage is part of the classifier, where it follows the pooling.
"""

from __future__ import annotations

import dataclasses
from types import MappingProxyType

import jax
import jax.numpy as jnp
from flax import nnx

from tljax.models import initializers
from tljax.models.layers import Conv, DropPath, LayerNorm, Linear, drop_path_rates

HEAD_OPTIONS = MappingProxyType({"norm": "layer"})
INITIALIZERS = MappingProxyType({("kernel", 4): initializers.normal, ("kernel", 2): initializers.normal})


@dataclasses.dataclass(frozen=True)
class Variant:
    """Architecture of a ConvNeXt.

    Attributes:
      depths: number of blocks of each stage.
      widths: channels of each stage.
      size: side of the depthwise kernels.
      drop_path: rate of stochastic depth at the last block, growing linearly from 0. The paper trains on ImageNet-1k
        with 0.1 (tiny), 0.4 (small) and 0.5 (base).
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    size: int = 7
    drop_path: float = 0.0


_NARROW = (96, 192, 384, 768)
_WIDE = (128, 256, 512, 1024)

VARIANTS = {
    "convnext_tiny": Variant((3, 3, 9, 3), _NARROW),
    "convnext_small": Variant((3, 3, 27, 3), _NARROW),
    "convnext_base": Variant((3, 3, 27, 3), _WIDE),
}


class Block(nnx.Module):
    """A residual block: a depthwise convolution and a two-layer perceptron at every location."""

    def __init__(self, channels: int, size: int, rate: float, *, dtype, rngs):
        self.conv = Conv(channels, channels, size, groups=channels, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(channels, dtype=dtype, rngs=rngs)
        self.dense1 = Linear(channels, 4 * channels, dtype=dtype, rngs=rngs)
        self.dense2 = Linear(4 * channels, channels, dtype=dtype, rngs=rngs)
        self.gamma = nnx.Param(jnp.zeros(channels))
        self.drop = DropPath(rate)

    def __call__(self, x: jax.Array, train: bool = False, rngs: nnx.Rngs | None = None) -> jax.Array:
        """[B, H, W, C] → [B, H, W, C]."""
        y = self.dense1(self.norm(self.conv(x)))
        # Exact GELU, as published; the tanh approximation differs by up to 5e-4.
        y = self.dense2(nnx.gelu(y, approximate=False))
        return x + self.drop(y * self.gamma.astype(y.dtype), train, rngs)


class Stem(nnx.Module):
    """A 4×4 convolution at stride 4 (patch embedding), and LayerNorm."""

    def __init__(self, inputs: int, outputs: int, *, dtype, rngs):
        self.conv = Conv(inputs, outputs, 4, stride=4, padding=0, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(outputs, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, train: bool = False, rngs: nnx.Rngs | None = None) -> jax.Array:
        """[B, H, W, in] → [B, H / 4, W / 4, out]; pixels that do not fill a patch are dropped."""
        return self.norm(self.conv(x))


class Stage(nnx.Module):
    """Blocks `block0`, `block1`, ..., after LayerNorm and a 2×2 convolution at stride 2 if the width changes."""

    def __init__(self, inputs: int, outputs: int, size: int, rates: list[float], *, dtype, rngs):
        self.downsamples = inputs != outputs
        if self.downsamples:
            self.norm = LayerNorm(inputs, dtype=dtype, rngs=rngs)
            self.conv = Conv(inputs, outputs, 2, stride=2, padding=0, dtype=dtype, rngs=rngs)
        self.names = tuple(f"block{i}" for i in range(len(rates)))
        for name, rate in zip(self.names, rates, strict=True):
            setattr(self, name, Block(outputs, size, rate, dtype=dtype, rngs=rngs))

    def __call__(self, x: jax.Array, train: bool = False, rngs: nnx.Rngs | None = None) -> jax.Array:
        """[B, H, W, in] → [B, H / 2, W / 2, out], or [B, H, W, out] in the first stage."""
        x = self.conv(self.norm(x)) if self.downsamples else x
        for name in self.names:
            x = getattr(self, name)(x, train, rngs)
        return x


def stages(config: Variant, *, inputs: int = 3, dtype=None, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
    """Build the stages: `stem` at stride 4, `stage1` at the same stride, then each stage at twice the stride."""
    common = {"dtype": dtype, "rngs": rngs}
    channels = config.widths[0]
    modules: dict[str, nnx.Module] = {"stem": Stem(inputs, channels, **common)}
    rates = drop_path_rates(config.drop_path, config.depths)
    for k, (width, stage_rates) in enumerate(zip(config.widths, rates, strict=True), start=1):
        modules[f"stage{k}"] = Stage(channels, width, config.size, stage_rates, **common)
        channels = width
    return modules
