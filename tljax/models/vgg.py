"""VGG (Simonyan & Zisserman 2015, https://arxiv.org/abs/1409.1556)."""

from __future__ import annotations

import dataclasses

import jax
from flax import nnx

from tljax.models.layers import Conv, max_pool


@dataclasses.dataclass(frozen=True)
class Variant:
    """Output channels of the convolutions, block by block."""

    blocks: tuple[tuple[int, ...], ...]


VARIANTS = {
    "vgg16": Variant(((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)),
}


class Convs(nnx.Module):
    """Convolutions `conv{first}`, ... with ReLU, after an optional 2×2 max pool."""

    def __init__(self, inputs: int, widths: tuple[int, ...], *, first=1, pool=False, dtype=None, rngs):
        self.pool = pool
        self.names = tuple(f"conv{first + i}" for i in range(len(widths)))
        for name, outputs in zip(self.names, widths, strict=True):
            setattr(self, name, Conv(inputs, outputs, dtype=dtype, rngs=rngs))
            inputs = outputs

    def __call__(self, x: jax.Array, train: bool = False, rngs: nnx.Rngs | None = None) -> jax.Array:
        """[B, H, W, in] → [B, H, W, out], half the side when pooled."""
        x = max_pool(x) if self.pool else x
        for name in self.names:
            x = nnx.relu(getattr(self, name)(x))
        return x


def stages(config: Variant, *, dtype=None, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
    """Stage k is block k of the paper, without its pool; `stem` is conv1_1 and `pool` the last max pool.

    Pools stand at the start of the next stage, so that a stage's map is the one before the pool (Keras'
    `block3_conv3`); its stride is 2^(k-1). `pool` is Keras' `block5_pool`.
    """
    first, *others = config.blocks
    built = {"stem": Convs(3, first[:1], dtype=dtype, rngs=rngs)}
    built["stage1"] = Convs(first[0], first[1:], first=2, dtype=dtype, rngs=rngs)
    inputs = first[-1]
    for k, widths in enumerate(others, start=2):
        built[f"stage{k}"] = Convs(inputs, widths, pool=True, dtype=dtype, rngs=rngs)
        inputs = widths[-1]
    return built | {"pool": Convs(inputs, (), pool=True, rngs=rngs)}
