"""ResNet (He et al. 2016, arXiv:1512.03385), ResNeXt (Xie et al. 2017, arXiv:1611.05431) and Wide ResNet.

Shortcuts that change the shape are 1×1 convolutions with BatchNorm (option B). Version 1.5, the ResNet-50 of all
libraries but Keras, strides in a bottleneck's 3×3 convolution; version 1, the paper's, in its first 1×1 convolution.
Wide ResNet: Zagoruyko & Komodakis 2016, arXiv:1605.07146.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
from flax import nnx

from tljax.models.layers import KERAS_BN, TORCH_BN, BatchNormConfig, ConvNorm, DropPath, drop_path_rates, max_pool
from tljax.ops.fusion import fusion_barrier


@dataclasses.dataclass(frozen=True)
class Variant:
    """Architecture of a ResNet.

    Attributes:
      depths: number of blocks of each stage.
      widths: channels of each stage's 3×3 convolutions, before `groups` and `group_width`.
      bottleneck: whether a block has 1×1, 3×3 and 1×1 convolutions, the last with four times the channels, or two 3×3.
      small: whether the stem is for small images: a 3×3 convolution at stride 1, not 7×7 at stride 2 and a max pool.
      groups: of the 3×3 convolutions (ResNeXt's cardinality).
      group_width: channels of a group where `widths` is 64 (Wide ResNet-50-2: 128).
      stride_first: whether a bottleneck strides in its first 1×1 convolution (version 1).
      bias: whether convolutions have a bias, as in Keras.
      norm: constants of BatchNorm.
      drop_path: rate of stochastic depth at the last block, growing linearly from 0.
      output_stride: 32, or 16 or 8: later stages are dilated instead of strided (as for FCN and DeepLab).
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    bottleneck: bool = True
    small: bool = False
    groups: int = 1
    group_width: int = 64
    stride_first: bool = False
    bias: bool = False
    norm: BatchNormConfig = TORCH_BN
    drop_path: float = 0.0
    output_stride: int = 32


_DEEP = {"50": (3, 4, 6, 3), "101": (3, 4, 23, 3), "152": (3, 8, 36, 3)}

VARIANTS = {
    "resnet8": Variant((1, 1, 1), (16, 32, 64), bottleneck=False, small=True),
    "resnet20": Variant((3, 3, 3), (16, 32, 64), bottleneck=False, small=True),
    "resnet18": Variant((2, 2, 2, 2), bottleneck=False),
    "resnet34": Variant((3, 4, 6, 3), bottleneck=False),
    **{f"resnet{n}": Variant(depths) for n, depths in _DEEP.items()},
    # Version 1 as published by Keras; ResNet-18 and -34 have no 1×1 convolution to stride in.
    **{f"resnet{n}_v1": Variant(d, stride_first=True, bias=True, norm=KERAS_BN) for n, d in _DEEP.items()},
    "resnext50_32x4d": Variant(_DEEP["50"], groups=32, group_width=4),
    "resnext101_32x8d": Variant(_DEEP["101"], groups=32, group_width=8),
    "wide_resnet50_2": Variant(_DEEP["50"], group_width=128),
    "wide_resnet101_2": Variant(_DEEP["101"], group_width=128),
}


class Block(nnx.Module):
    """A residual block of two or three convolutions; `units` are (outputs, size, options) of each."""

    def __init__(self, inputs: int, units: list[tuple[int, int, dict]], *, stride, rate, common):
        outputs = units[-1][0]
        if stride != 1 or inputs != outputs:
            self.shortcut = ConvNorm(inputs, outputs, 1, stride=stride, **common)
        else:
            self.shortcut = None
        self.names = tuple(f"unit{k}" for k in range(1, len(units) + 1))
        for name, (width, size, options) in zip(self.names, units, strict=True):
            setattr(self, name, ConvNorm(inputs, width, size, **options, **common))
            inputs = width
        self.drop = DropPath(rate)

    def __call__(self, x: jax.Array, train: bool = False, rngs: nnx.Rngs | None = None) -> jax.Array:
        """[B, H, W, in] → [B, H / stride, W / stride, out]."""
        y = x
        for name in self.names:
            y = getattr(self, name)(y, train)
            y = nnx.relu(y) if name != self.names[-1] else y
        shortcut = x if self.shortcut is None else self.shortcut(x, train)
        return fusion_barrier(nnx.relu(self.drop(y, train, rngs) + shortcut))


class Stem(nnx.Module):
    """One convolution with BatchNorm and ReLU."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int, *, common):
        self.unit = ConvNorm(inputs, outputs, size, stride=stride, **common)

    def __call__(self, x: jax.Array, train: bool = False, rngs: nnx.Rngs | None = None) -> jax.Array:
        """[B, H, W, in] → [B, H / stride, W / stride, out]."""
        return nnx.relu(self.unit(x, train))


class Stage(nnx.Module):
    """Blocks `block0`, `block1`, ..., after an optional 3×3 max pool at stride 2."""

    def __init__(self, blocks: Sequence[nnx.Module], pool: bool = False):
        self.pool = pool
        self.names = tuple(f"block{i}" for i in range(len(blocks)))
        for name, block in zip(self.names, blocks, strict=True):
            setattr(self, name, block)

    def __call__(self, x: jax.Array, train: bool = False, rngs: nnx.Rngs | None = None) -> jax.Array:
        """[B, H, W, in] → [B, H / stride, W / stride, out]."""
        x = max_pool(x, 3, 2, padding=1) if self.pool else x
        for name in self.names:
            x = getattr(self, name)(x, train, rngs)
        return x


def stages(config: Variant, *, inputs: int = 3, dtype=None, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
    """Build the stages: `stem`, then each stage at half the side of the previous; with `small`, from stage 2 on.

    The max pool is at the start of `stage1`, so the stem's features have stride 2.
    """
    common = {"norm": config.norm, "bias": config.bias, "dtype": dtype, "rngs": rngs}
    channels = config.widths[0]
    stem_size, stem_stride = (3, 1) if config.small else (7, 2)
    modules: dict[str, nnx.Module] = {"stem": Stem(inputs, channels, stem_size, stem_stride, common=common)}
    total_stride = 1 if config.small else 4
    dilation = 1
    rates = drop_path_rates(config.drop_path, config.depths)
    for k, (width, stage_rates) in enumerate(zip(config.widths, rates, strict=True), start=1):
        stage_stride = 1 if k == 1 else 2
        # The first block of a stage keeps the previous stage's dilation, as in torchvision.
        first_dilation = dilation
        if total_stride * stage_stride > config.output_stride:
            dilation *= stage_stride
            stage_stride = 1
        total_stride *= stage_stride
        blocks = []
        for i, rate in enumerate(stage_rates):
            stride = stage_stride if i == 0 else 1
            units = _block_units(config, width, stride, first_dilation if i == 0 else dilation)
            blocks.append(Block(channels, units, stride=stride, rate=rate, common=common))
            channels = units[-1][0]
        modules[f"stage{k}"] = Stage(blocks, pool=k == 1 and not config.small)
    return modules


def _block_units(config: Variant, width: int, stride: int, dilation: int) -> list[tuple[int, int, dict]]:
    """Return (output channels, kernel size, options) of a block's convolutions."""
    if not config.bottleneck:
        return [(width, 3, {"stride": stride, "dilation": dilation}), (width, 3, {"dilation": dilation})]
    inner = width * config.group_width // 64 * config.groups
    stride1, stride2 = (stride, 1) if config.stride_first else (1, stride)
    return [
        (inner, 1, {"stride": stride1}),
        (inner, 3, {"stride": stride2, "dilation": dilation, "groups": config.groups}),
        (4 * width, 1, {}),
    ]
