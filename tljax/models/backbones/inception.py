"""Inception: GoogLeNet, which is v1 (Szegedy et al. 2015, arXiv:1409.4842), and v3 (2016, arXiv:1512.00567).

A network is defined by data: a stage is a tuple of steps. A step is a convolution, a pool or a block; a block is a
  tuple
of branches that read the same features and whose outputs are concatenated; a branch is again a tuple of steps.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx

from tljax.errors import UserError
from tljax.models import layers
from tljax.models.layers import BatchNormConfig, ConvNorm, Dropout, Linear, Side

_NORM = BatchNormConfig(epsilon=1e-3)  # with PyTorch's momentum


@dataclasses.dataclass(frozen=True)
class Conv:
    """A convolution with BatchNorm and ReLU; with padding None the output has the input's side at stride 1."""

    outputs: int
    size: Side = 1
    stride: int = 1
    padding: Side | None = None


@dataclasses.dataclass(frozen=True)
class MaxPool:
    """Max pooling."""

    size: int = 3
    stride: int = 2
    padding: int = 0
    ceil_mode: bool = False

    def __call__(self, x: jax.Array, train: bool = False, rngs: nnx.Rngs | None = None) -> jax.Array:
        """[B, H, W, C] → [B, H / stride, W / stride, C]."""
        return layers.max_pool(x, self.size, self.stride, self.padding, self.ceil_mode)


@dataclasses.dataclass(frozen=True)
class AveragePool:
    """Average pooling; `count_padding` averages padding in as zeros."""

    size: int = 3
    stride: int = 1
    padding: int = 1
    count_padding: bool = True

    def __call__(self, x: jax.Array, train: bool = False, rngs: nnx.Rngs | None = None) -> jax.Array:
        """[B, H, W, C] → [B, H / stride, W / stride, C]."""
        return layers.average_pool(x, self.size, self.stride, self.padding, self.count_padding)


@dataclasses.dataclass(frozen=True)
class AverageTo:
    """Average pooling to a grid of `side` × `side` locations."""

    side: int

    def __call__(self, x: jax.Array, train: bool = False, rngs: nnx.Rngs | None = None) -> jax.Array:
        """[B, H, W, C] → [B, side, side, C]."""
        return layers.average_pool_to(x, (self.side, self.side))


Step = Conv | MaxPool | AveragePool | AverageTo | tuple[tuple, ...]


@dataclasses.dataclass(frozen=True)
class Auxiliary:
    """Architecture of an auxiliary classifier for training.

    Attributes:
      stage: the stage whose features it reads.
      steps: applied to these features; their output is flattened in H, W, C order.
      min_side: minimum side of the features.
      pool_to: number of locations of the last step's output.
      hidden: width of a hidden layer with ReLU; 0: none.
      dropout: rate before the last layer.
    """

    stage: str
    steps: tuple[Step, ...]
    min_side: int = 1
    num_locations: int = 1
    hidden: int = 0
    dropout: float = 0.0


@dataclasses.dataclass(frozen=True)
class Variant:
    """Architecture of an Inception network.

    Attributes:
      version: 1 or 3; selects the parameter names of other libraries.
      stages: the steps of `stem`, `stage1`, ...
      norm: constants of BatchNorm.
      auxiliary: the auxiliary classifiers `aux1`, ...
    """

    version: int
    stages: tuple[tuple[Step, ...], ...]
    norm: BatchNormConfig = _NORM
    auxiliary: tuple[Auxiliary, ...] = ()


def _v1(conv1: int, reduce3: int, conv3: int, reduce5: int, conv5: int, pool: int) -> tuple:
    # The third branch's convolution is 5×5 in the paper; torchvision's weights are for 3×3.
    return (
        (Conv(conv1),),
        (Conv(reduce3), Conv(conv3, 3)),
        (Conv(reduce5), Conv(conv5, 3)),
        (MaxPool(3, 1, padding=1), Conv(pool)),
    )


def _v1_auxiliary(stage: str) -> Auxiliary:
    return Auxiliary(stage, (AverageTo(4), Conv(128)), num_locations=16, hidden=1024, dropout=0.7)


_CEIL = MaxPool(ceil_mode=True)
_GOOGLENET = (
    (Conv(64, 7, 2),),
    (_CEIL, Conv(64), Conv(192, 3)),
    (_CEIL, _v1(64, 96, 128, 16, 32, 32), _v1(128, 128, 192, 32, 96, 64)),
    (_CEIL, _v1(192, 96, 208, 16, 48, 64)),
    (_v1(160, 112, 224, 24, 64, 64), _v1(128, 128, 256, 24, 64, 64), _v1(112, 144, 288, 32, 64, 64)),
    (_v1(256, 160, 320, 32, 128, 128),),
    (MaxPool(2, ceil_mode=True), _v1(256, 160, 320, 32, 128, 128), _v1(384, 192, 384, 48, 128, 128)),
)


def _v3(count_padding: bool) -> tuple:
    """Return the stages of Inception v3; blocks `a` to `e` are torchvision's InceptionA to InceptionE."""
    average = AveragePool(count_padding=count_padding)

    def a(pool: int) -> tuple:
        double = (Conv(64), Conv(96, 3), Conv(96, 3))
        return (Conv(64),), (Conv(48), Conv(64, 5)), double, (average, Conv(pool))

    def c(width: int) -> tuple:
        row = (1, 7)
        column = (7, 1)
        single = (Conv(width), Conv(width, row), Conv(192, column))
        double = (Conv(width), Conv(width, column), Conv(width, row), Conv(width, column), Conv(192, row))
        return (Conv(192),), single, double, (average, Conv(192))

    b = (Conv(384, 3, 2, 0),), (Conv(64), Conv(96, 3), Conv(96, 3, 2, 0)), (MaxPool(),)
    d = (
        (Conv(192), Conv(320, 3, 2, 0)),
        (Conv(192), Conv(192, (1, 7)), Conv(192, (7, 1)), Conv(192, 3, 2, 0)),
        (MaxPool(),),
    )
    fork = (Conv(384, (1, 3)),), (Conv(384, (3, 1)),)
    e = (Conv(320),), (Conv(384), fork), (Conv(448), Conv(384, 3), fork), (average, Conv(192))
    return (
        (Conv(32, 3, 2, 0), Conv(32, 3, 1, 0), Conv(64, 3)),
        (MaxPool(), Conv(80), Conv(192, 3, 1, 0)),
        (MaxPool(), a(32), a(64), a(64)),
        (b, c(128), c(160), c(160), c(192)),
        (d, e, e),
    )


_V3_AUXILIARY = Auxiliary(
    "stage3", (AveragePool(5, 3, padding=0), Conv(128), Conv(768, 5, padding=0), AverageTo(1)), min_side=17
)

VARIANTS = {
    "googlenet": Variant(1, _GOOGLENET, auxiliary=(_v1_auxiliary("stage3"), _v1_auxiliary("stage4"))),
    "inception_v3": Variant(3, _v3(count_padding=True), auxiliary=(_V3_AUXILIARY,)),
    # Keras publishes no auxiliary classifier.
    "inception_v3_keras": Variant(
        3, _v3(count_padding=False), BatchNormConfig(1e-3, 0.99, unbiased=False, scale=False)
    ),
}


class Unit(ConvNorm):
    """A convolution with BatchNorm and ReLU."""

    def __call__(self, x: jax.Array, train: bool = False, rngs: nnx.Rngs | None = None) -> jax.Array:
        """[B, H, W, in] → [B, H / stride, W / stride, out]."""
        return nnx.relu(super().__call__(x, train))


class Chain(nnx.Module):
    """A sequence of steps, named by `unit_names`."""

    def __init__(self, inputs: int, steps: tuple[Step, ...], *, common):
        self.names = tuple(name for name, _ in unit_names(steps))
        for name, step in unit_names(steps):
            if isinstance(step, tuple):
                module = Block(inputs, step, common=common)
            elif isinstance(step, Conv):
                options = {"stride": step.stride, "padding": step.padding}
                module = Unit(inputs, step.outputs, step.size, **options, **common)
            else:
                module = step
            setattr(self, name, module)
            inputs = out_channels(inputs, (step,))

    def __call__(self, x: jax.Array, train: bool = False, rngs: nnx.Rngs | None = None) -> jax.Array:
        """[B, H, W, in] → [B, H / stride, W / stride, out]."""
        for name in self.names:
            x = getattr(self, name)(x, train, rngs)
        return x


class Block(nnx.Module):
    """Branches `branch1`, ... on the same features, concatenated."""

    def __init__(self, inputs: int, branches: tuple[tuple[Step, ...], ...], *, common):
        self.names = tuple(f"branch{k}" for k in range(1, len(branches) + 1))
        for name, steps in zip(self.names, branches, strict=True):
            setattr(self, name, Chain(inputs, steps, common=common))

    def __call__(self, x: jax.Array, train: bool = False, rngs: nnx.Rngs | None = None) -> jax.Array:
        """[B, H, W, in] → [B, H / stride, W / stride, sum of the branches' channels]."""
        return jnp.concatenate([getattr(self, name)(x, train, rngs) for name in self.names], axis=-1)


class AuxiliaryClassifier(nnx.Module):
    """A classifier on the features of an inner stage; see `Auxiliary`."""

    def __init__(self, inputs: int, config: Auxiliary, num_classes: int, *, norm: BatchNormConfig, dtype, rngs):
        self.config = config
        self.chain = Chain(inputs, config.steps, common={"norm": norm, "dtype": dtype, "rngs": rngs})
        features = config.num_locations * out_channels(inputs, config.steps)
        self.hidden = Linear(features, config.hidden, dtype=dtype, rngs=rngs) if config.hidden else None
        self.drop = Dropout(config.dropout)
        self.dense = Linear(config.hidden or features, num_classes, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, train: bool = False, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Return logits [B, num_classes] in at least float32 for the stage's features [B, H, W, in]."""
        _, height, width, _ = x.shape
        if min(height, width) < self.config.min_side:
            raise UserError(
                f"The auxiliary classifier needs features of at least {self.config.min_side}×{self.config.min_side} at "
                f"{self.config.stage}, got {height}×{width}: increase data.image_size (Inception v3 uses 299) or set "
                "model.aux_weight=0."
            )
        x = self.chain(x, train, rngs).reshape(len(x), -1)
        x = x if self.hidden is None else nnx.relu(self.hidden(x))
        x = self.dense(self.drop(x, train, rngs))
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def stages(config: Variant, *, inputs: int = 3, dtype=None, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
    """Build the stages `stem`, `stage1`, ....

    Pools are at the start of a stage, so its features are those before the next pool. GoogLeNet's stages 3 to 5 have
    stride 16; the first two end where an auxiliary classifier is attached. Inception v3's stages have strides 2, 4, 8,
    16, 32, but unpadded convolutions make their features slightly smaller.
    """
    common = {"norm": config.norm, "dtype": dtype, "rngs": rngs}
    modules = {}
    for k, steps in enumerate(config.stages):
        modules[f"stage{k}" if k else "stem"] = Chain(inputs, steps, common=common)
        inputs = out_channels(inputs, steps)
    return modules


def auxiliary(config: Variant, num_classes: int, *, dtype=None, rngs: nnx.Rngs) -> dict[str, tuple[str, nnx.Module]]:
    """Build the auxiliary classifiers: {"aux1": (stage whose features it reads, module), ...}."""
    classifiers = {}
    for k, aux_config in enumerate(config.auxiliary, start=1):
        previous_stages = config.stages[: int(aux_config.stage.removeprefix("stage")) + 1]
        inputs = out_channels(0, sum(previous_stages, ()))
        module = AuxiliaryClassifier(inputs, aux_config, num_classes, norm=config.norm, dtype=dtype, rngs=rngs)
        classifiers[f"aux{k}"] = (aux_config.stage, module)
    return classifiers


def unit_names(steps: tuple[Step, ...]) -> Iterator[tuple[str, Step]]:
    """Yield the steps of a chain with their names: `unit1`, `unit2`, ..., `block1`, ..., `pool1`, ..."""
    counts = collections.Counter()
    for step in steps:
        kind = {Conv: "unit", tuple: "block"}.get(type(step), "pool")
        counts[kind] += 1
        yield f"{kind}{counts[kind]}", step


def out_channels(inputs: int, steps: tuple[Step, ...]) -> int:
    """Return the output channels of a chain with `inputs` input channels."""
    for step in steps:
        if isinstance(step, Conv):
            inputs = step.outputs
        elif isinstance(step, tuple):
            inputs = sum(out_channels(inputs, branch) for branch in step)
    return inputs
