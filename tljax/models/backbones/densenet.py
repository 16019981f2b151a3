"""DenseNet-BC (Huang et al. 2017, arXiv:1608.06993): a layer reads the features of all previous layers of its block.

BatchNorm and ReLU precede their convolutions (pre-activation).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from tljax.models.backbones.resnet import Stem
from tljax.models.layers import KERAS_BN, TORCH_BN, BatchNorm, BatchNormConfig, Conv, Dropout, average_pool, max_pool
from tljax.ops.fusion import fusion_barrier


@dataclasses.dataclass(frozen=True)
class Variant:
    """Architecture of a DenseNet.

    Attributes:
      depths: number of layers of each block.
      growth: channels that each layer adds.
      initial: channels of the stem.
      bottleneck: channels of a layer's 1×1 convolution, as a multiple of `growth`.
      norm: constants of BatchNorm.
      dropout: rate after each layer's last convolution.
    """

    depths: tuple[int, ...]
    growth: int = 32
    initial: int = 64
    bottleneck: int = 4
    norm: BatchNormConfig = TORCH_BN
    dropout: float = 0.0


_PLAIN = {
    "densenet121": Variant((6, 12, 24, 16)),
    "densenet169": Variant((6, 12, 32, 32)),
    "densenet201": Variant((6, 12, 48, 32)),
}
VARIANTS = (
    _PLAIN
    | {"densenet161": Variant((6, 12, 36, 24), growth=48, initial=96)}
    | {f"{name}_keras": dataclasses.replace(v, norm=KERAS_BN) for name, v in _PLAIN.items()}
)


# Norms precede their convolutions. The output of a layer's last convolution or of a transition is read by many norms,
# so these have no entry.
NORM_AFTER = (("stem/unit/conv", "stem/unit/bn"), (r"(.*)/unit1/conv", r"\1/unit2/bn"))


class NormConv(nnx.Module):
    """BatchNorm, ReLU, an optional 2×2 average pool at stride 2, and a convolution."""

    def __init__(self, inputs: int, outputs: int, size: int, *, pool: bool = False, norm: BatchNormConfig, dtype, rngs):
        self.pool = pool
        self.bn = BatchNorm(inputs, norm=norm, dtype=dtype, rngs=rngs)
        self.conv = Conv(inputs, outputs, size, bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, in] → [B, H, W, out], or half that side with `pool`."""
        x = nnx.relu(self.bn(x, train))
        return self.conv(average_pool(x, 2, 2) if self.pool else x)


class DenseLayer(nnx.Module):
    """A 1×1 bottleneck convolution and a 3×3 convolution, each with its norm, and dropout."""

    def __init__(self, inputs: int, config: Variant, *, common):
        width = config.bottleneck * config.growth
        self.unit1 = NormConv(inputs, width, 1, **common)
        self.unit2 = NormConv(width, config.growth, 3, **common)
        self.drop = Dropout(config.dropout)

    def __call__(self, x: jax.Array, train: bool = False, rngs: nnx.Rngs | None = None) -> jax.Array:
        """[B, H, W, in] → the layer's new features [B, H, W, growth]."""
        return self.drop(self.unit2(self.unit1(x, train), train), train, rngs)


class Stage(nnx.Module):
    """A transition or 3×3 max pool, either of which halves the side, and the layers `layer1`, ... of a dense block.

    Args:
      inputs: input channels.
      width: output channels of the transition; None: a max pool instead.
      depth: number of layers.
      config: the variant.
      last: whether the network's final norm and ReLU follow.
      common: options of every convolution and its norm.
    """

    def __init__(self, inputs: int, width: int | None, depth: int, config: Variant, *, last: bool, common):
        # The paper pools after the transition's convolution. Both are linear, so the result is the same, and pooling
        # first leaves a quarter of the locations to the convolution.
        self.transition = NormConv(inputs, width, 1, pool=True, **common) if width else None
        channels = width or inputs
        self.names = tuple(f"layer{i}" for i in range(1, depth + 1))
        for name in self.names:
            setattr(self, name, DenseLayer(channels, config, common=common))
            channels += config.growth
        self.norm = BatchNorm(channels, **common) if last else None

    def __call__(self, x: jax.Array, train: bool = False, rngs: nnx.Rngs | None = None) -> jax.Array:
        """[B, H, W, in] → [B, H / 2, W / 2, width + depth · growth]."""
        x = self.transition(x, train) if self.transition is not None else max_pool(x, 3, 2, padding=1)
        for name in self.names:
            x = fusion_barrier(jnp.concatenate([x, getattr(self, name)(x, train, rngs)], axis=-1))
        return x if self.norm is None else nnx.relu(self.norm(x, train))


def stages(config: Variant, *, inputs: int = 3, dtype=None, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
    """Build the stages: `stem` at stride 2, then stage k is dense block k at stride 2^(k+1).

    The transition or max pool is at the start of a stage, so a stage's features are those before the next transition;
    the last stage's are after the final norm and ReLU.
    """
    common = {"norm": config.norm, "dtype": dtype, "rngs": rngs}
    channels = config.initial
    modules: dict[str, nnx.Module] = {"stem": Stem(inputs, channels, 7, 2, common=common)}
    for k, depth in enumerate(config.depths, start=1):
        width = None if k == 1 else channels // 2
        modules[f"stage{k}"] = Stage(channels, width, depth, config, last=k == len(config.depths), common=common)
        channels = (width or channels) + depth * config.growth
    return modules
