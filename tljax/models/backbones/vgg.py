"""VGG (Simonyan & Zisserman 2015, arXiv:1409.1556), without and with BatchNorm."""

from __future__ import annotations

import dataclasses

import jax
from flax import nnx

from tljax.models.layers import TORCH_BN, BatchNormConfig, Conv, ConvNorm, max_pool


@dataclasses.dataclass(frozen=True)
class Variant:
    """Architecture of a VGG.

    Attributes:
      blocks: output channels of the convolutions of each block.
      norm: constants of the BatchNorm after each convolution; None: no BatchNorm, as in the paper.
    """

    blocks: tuple[tuple[int, ...], ...]
    norm: BatchNormConfig | None = None


_DEPTHS = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
_PLAIN = {
    name: Variant(tuple((width,) * depth for width, depth in zip((64, 128, 256, 512, 512), depths, strict=True)))
    for name, depths in _DEPTHS.items()
}
VARIANTS = _PLAIN | {f"{name}_bn": dataclasses.replace(v, norm=TORCH_BN) for name, v in _PLAIN.items()}


class Convs(nnx.Module):
    """Convolutions `conv{first}`, ... with ReLU, after an optional 2×2 max pool."""

    def __init__(self, inputs: int, widths: tuple[int, ...], *, norm, first=1, pool=False, dtype=None, rngs):
        self.pool = pool
        self.names = tuple(f"conv{first + i}" for i in range(len(widths)))
        for name, outputs in zip(self.names, widths, strict=True):
            if norm is None:
                unit = Conv(inputs, outputs, dtype=dtype, rngs=rngs)
            else:
                # torchvision's convolutions have a bias with BatchNorm too.
                unit = ConvNorm(inputs, outputs, norm=norm, bias=True, dtype=dtype, rngs=rngs)
            setattr(self, name, unit)
            inputs = outputs
        self.has_norm = norm is not None

    def __call__(self, x: jax.Array, train: bool = False, rngs: nnx.Rngs | None = None) -> jax.Array:
        """[B, H, W, in] → [B, H, W, out], or half that side with `pool`."""
        x = max_pool(x) if self.pool else x
        for name in self.names:
            unit = getattr(self, name)
            x = nnx.relu(unit(x, train) if self.has_norm else unit(x))
        return x


def stages(config: Variant, *, inputs: int = 3, dtype=None, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
    """Build the stages: stage k is block k of the paper without its pool, `stem` is conv1_1, `pool` the last max pool.

    Pools are at the start of the next stage, so a stage's features are those before the pool (e.g. Keras'
    `block3_conv3`), at stride 2^(k-1). `pool` is Keras' `block5_pool`.
    """
    common = {"norm": config.norm, "dtype": dtype, "rngs": rngs}
    first_widths, *other_widths = config.blocks
    modules: dict[str, nnx.Module] = {"stem": Convs(inputs, first_widths[:1], **common)}
    modules["stage1"] = Convs(first_widths[0], first_widths[1:], first=2, **common)
    channels = first_widths[-1]
    for k, widths in enumerate(other_widths, start=2):
        modules[f"stage{k}"] = Convs(channels, widths, pool=True, **common)
        channels = widths[-1]
    return modules | {"pool": Convs(channels, (), pool=True, **common)}
