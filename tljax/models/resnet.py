"""ResNet (He et al. 2016, https://arxiv.org/abs/1512.03385) in the small form of its section 4.2.

Shortcuts that change the shape are 1×1 convolutions with BatchNorm (option B), as in torchvision.
"""

from __future__ import annotations

import dataclasses

import jax
from flax import nnx

from tljax.models.layers import BatchNorm, Conv


@dataclasses.dataclass(frozen=True)
class Variant:
    """Blocks and channels of each stage; the first stage keeps the side, the others halve it."""

    depths: tuple[int, ...]
    widths: tuple[int, ...]


VARIANTS = {
    "resnet8": Variant((1, 1, 1), (16, 32, 64)),
    "resnet20": Variant((3, 3, 3), (16, 32, 64)),
}


class ConvNorm(nnx.Module):
    """A convolution without bias, and its BatchNorm."""

    def __init__(self, inputs: int, outputs: int, size: int, *, stride=1, dtype=None, rngs):
        self.conv = Conv(inputs, outputs, size, stride=stride, bias=False, dtype=dtype, rngs=rngs)
        self.bn = BatchNorm(outputs, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, in] → [B, H / stride, W / stride, out]."""
        return self.bn(self.conv(x), train)


class BasicBlock(nnx.Module):
    """Two 3×3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, *, stride=1, dtype=None, rngs):
        self.unit1 = ConvNorm(inputs, outputs, 3, stride=stride, dtype=dtype, rngs=rngs)
        self.unit2 = ConvNorm(outputs, outputs, 3, dtype=dtype, rngs=rngs)
        if stride != 1 or inputs != outputs:
            self.shortcut = ConvNorm(inputs, outputs, 1, stride=stride, dtype=dtype, rngs=rngs)
        else:
            self.shortcut = None

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, in] → [B, H / stride, W / stride, out]."""
        y = self.unit2(nnx.relu(self.unit1(x, train)), train)
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x, train)))


class Stem(nnx.Module):
    """One 3×3 convolution with BatchNorm and ReLU."""

    def __init__(self, outputs: int, *, dtype=None, rngs):
        self.unit = ConvNorm(3, outputs, 3, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, train: bool = False, rngs: nnx.Rngs | None = None) -> jax.Array:
        """[B, H, W, 3] → [B, H, W, out]."""
        return nnx.relu(self.unit(x, train))


class Stage(nnx.Module):
    """Blocks `block0`, `block1`, ...; the first one changes shape."""

    def __init__(self, inputs: int, outputs: int, depth: int, *, stride, dtype=None, rngs):
        self.names = tuple(f"block{i}" for i in range(depth))
        for i, name in enumerate(self.names):
            block = BasicBlock(
                inputs if i == 0 else outputs, outputs, stride=stride if i == 0 else 1, dtype=dtype, rngs=rngs
            )
            setattr(self, name, block)

    def __call__(self, x: jax.Array, train: bool = False, rngs: nnx.Rngs | None = None) -> jax.Array:
        """[B, H, W, in] → [B, H / stride, W / stride, out]."""
        for name in self.names:
            x = getattr(self, name)(x, train)
        return x


def stages(config: Variant, *, dtype=None, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
    """`stem` at stride 1, then stage k at stride 2^(k-1)."""
    built, inputs = {"stem": Stem(config.widths[0], dtype=dtype, rngs=rngs)}, config.widths[0]
    for k, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True), start=1):
        built[f"stage{k}"] = Stage(inputs, width, depth, stride=1 if k == 1 else 2, dtype=dtype, rngs=rngs)
        inputs = width
    return built
