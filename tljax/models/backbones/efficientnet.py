"""EfficientNet-Lite: EfficientNet (Tan & Le 2019, arXiv:1905.11946) without squeeze-and-excitation and with ReLU6.

A block is an inverted residual (Sandler et al. 2018, arXiv:1801.04381): a 1×1 convolution that expands the channels, a
depthwise convolution, and a 1×1 convolution that projects them. Larger variants have wider and deeper stages; stem and
top keep their width. Released in 2020 as tensorflow/tpu: models/official/efficientnet/lite.
"""

from __future__ import annotations

import dataclasses
import math
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tljax.models import initializers
from tljax.models.backbones.resnet import Stage
from tljax.models.layers import TORCH_BN, BatchNormConfig, ConvNorm, DropPath, drop_path_rates

TENSORFLOW_BN = BatchNormConfig(epsilon=1e-3, momentum=0.99, unbiased=False)
STEM_CHANNELS = 32
TOP_CHANNELS = 1280


class StageConfig(NamedTuple):
    """A stage before scaling: blocks, side of the depthwise kernels, stride, expansion of channels, output channels."""

    depth: int
    size: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    StageConfig(1, 3, 1, 1, 16),
    StageConfig(2, 3, 2, 6, 24),
    StageConfig(2, 5, 2, 6, 40),
    StageConfig(3, 3, 2, 6, 80),
    StageConfig(3, 5, 1, 6, 112),
    StageConfig(4, 5, 2, 6, 192),
    StageConfig(1, 3, 1, 6, 320),
)


@dataclasses.dataclass(frozen=True)
class Variant:
    """Architecture of an EfficientNet-Lite.

    Attributes:
      width: factor on the channels of the stages, which are rounded to multiples of 8.
      depth: factor on the number of blocks, rounded up; the first and the last stage keep their single block.
      drop_path: rate of stochastic depth at the last block, growing linearly from 0. The release trains with 0.2.
      same_padding: whether to pad as TensorFlow, not equally on both sides.
      norm: constants of BatchNorm.
    """

    width: float = 1.0
    depth: float = 1.0
    drop_path: float = 0.0
    same_padding: bool = True
    norm: BatchNormConfig = TENSORFLOW_BN

    @property
    def depths(self) -> tuple[int, ...]:
        """Number of blocks of each stage."""
        inner = (math.ceil(self.depth * stage.depth) for stage in STAGES[1:-1])
        return (STAGES[0].depth, *inner, STAGES[-1].depth)


# Published for images of 224, 240, 260, 280 and 300 pixels.
VARIANTS = {
    "efficientnet_lite0": Variant(),
    "efficientnet_lite1": Variant(1.0, 1.1),
    "efficientnet_lite2": Variant(1.1, 1.2),
    "efficientnet_lite3": Variant(1.2, 1.4),
    "efficientnet_lite4": Variant(1.4, 1.8),
    # As timm trained it; timm's `tf_efficientnet_lite*` are the variants above.
    "efficientnet_lite0_torch": Variant(same_padding=False, norm=TORCH_BN),
}


def depthwise_he_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draw from a normal of variance 2 / fan-out, where an output of a depthwise kernel [k, k, 1, C] has fan-out k².

    torchvision's fan-out is C times as large: the outputs would be small beside BatchNorm's epsilon of 1e-3.
    """
    if shape[2] > 1:
        return initializers.he_normal(rng, shape)
    return rng.normal(0, math.sqrt(2 / math.prod(shape[:2])), shape)


INITIALIZERS = MappingProxyType({("kernel", 4): depthwise_he_normal})


def relu6(x: jax.Array) -> jax.Array:
    """Limit `x` to 0..6; the gradient at 0 is 0, as in TensorFlow and PyTorch, not 0.5 as that of `jax.nn.relu6`."""
    return jnp.minimum(nnx.relu(x), 6)


class Unit(nnx.Module):
    """A convolution with BatchNorm and ReLU6."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int, *, common: dict[str, Any]):
        self.unit = ConvNorm(inputs, outputs, size, stride=stride, **common)

    def __call__(self, x: jax.Array, train: bool = False, rngs: nnx.Rngs | None = None) -> jax.Array:
        """[B, H, W, in] → [B, H / stride, W / stride, out]."""
        return relu6(self.unit(x, train))


class Block(nnx.Module):
    """An inverted residual, with a shortcut if the shape does not change.

    Args:
      inputs: input channels.
      outputs: output channels.
      stage: the stage's kernel side and expansion.
      stride: of the depthwise convolution.
      rate: of stochastic depth.
      common: options of every convolution and its norm.
    """

    def __init__(self, inputs: int, outputs: int, stage: StageConfig, *, stride: int, rate: float, common):
        width = inputs * stage.expansion
        self.expand = ConvNorm(inputs, width, 1, **common) if stage.expansion > 1 else None
        self.depthwise = ConvNorm(width, width, stage.size, stride=stride, groups=width, **common)
        self.project = ConvNorm(width, outputs, 1, **common)
        self.has_shortcut = stride == 1 and inputs == outputs
        self.drop = DropPath(rate)

    def __call__(self, x: jax.Array, train: bool = False, rngs: nnx.Rngs | None = None) -> jax.Array:
        """[B, H, W, in] → [B, H / stride, W / stride, out]."""
        # `fusion_barrier` after any of these steps changes the speed on a CPU by less than 10 %.
        y = x if self.expand is None else relu6(self.expand(x, train))
        y = relu6(self.depthwise(y, train))
        y = self.project(y, train)
        return x + self.drop(y, train, rngs) if self.has_shortcut else y


def stages(config: Variant, *, inputs: int = 3, dtype=None, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
    """Build the stages: `stem` at stride 2, `stage1` to `stage7`, and `top`, a 1×1 convolution to 1280 channels.

    Stages 2, 3, 4 and 6 halve the side.
    """
    padding = "same" if config.same_padding else None
    common = {"norm": config.norm, "padding": padding, "dtype": dtype, "rngs": rngs}
    channels = STEM_CHANNELS
    modules: dict[str, nnx.Module] = {"stem": Unit(inputs, channels, 3, 2, common=common)}
    rates = drop_path_rates(config.drop_path, config.depths)
    for k, (stage, stage_rates) in enumerate(zip(STAGES, rates, strict=True), start=1):
        outputs = round_channels(config.width * stage.channels)
        blocks = []
        for i, rate in enumerate(stage_rates):
            stride = stage.stride if i == 0 else 1
            blocks.append(Block(channels, outputs, stage, stride=stride, rate=rate, common=common))
            channels = outputs
        modules[f"stage{k}"] = Stage(blocks)
    return modules | {"top": Unit(channels, TOP_CHANNELS, 1, 1, common=common)}


def round_channels(channels: float) -> int:
    """Round to a multiple of 8 that is at least 8 and at least 90 % of `channels`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
