"""The layers that every family is made of; all convolutions, norms and dropouts go through here.

Every module is called as `module(x, train=..., rngs=...)`: `train` asks for batch statistics and dropout, `rngs` is the
key that dropout draws from. A BatchNorm or Dropout whose `frozen` is set stays in inference mode all the same: that is
how a phase keeps the frozen part of a network still. A layer whose `neurons` are set learns those alone. Initial values
come from `tljax.models.initializers`.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tljax.models.partial_training import PartiallyTrainable
from tljax.ops import batch_norm
from tljax.ops.convolution import ConvSpec, convolve, linear_in_kernel

Side = int | tuple[int, int]


class BatchNormConfig(NamedTuple):
    """The constants of a BatchNorm, which differ between libraries and networks.

    Attributes:
      epsilon: added to the variance.
      momentum: of the running statistics; PyTorch's 0.1 is 0.9 here.
      unbiased: whether the running variance follows the batch variance times n / (n - 1).
      scale: whether there is a scale (gamma).
    """

    epsilon: float = 1e-5
    momentum: float = 0.9
    unbiased: bool = True
    scale: bool = True


TORCH_BN = BatchNormConfig()
# Keras' own ResNet and DenseNet; momentum is Keras' default.
KERAS_BN = BatchNormConfig(epsilon=1.001e-5, momentum=0.99, unbiased=False)


class Conv(PartiallyTrainable, nnx.Conv):
    """Convolution, NHWC, kernel [kh, kw, in / groups, out], padded alike on both sides as in PyTorch.

    Args:
      inputs: channels.
      outputs: channels.
      size: of the kernel.
      stride: of the window.
      padding: pixels on each side; None keeps the side at stride 1, for odd sizes.
      groups: of channels that do not see each other.
      dilation: distance of the kernel's taps.
      bias: whether there is one.
      dtype: of the computation.
      rngs: flax wants one; initial values come from `tljax.models.initializers`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: Side = 3,
        *,
        stride: int = 1,
        padding: Side | None = None,
        groups: int = 1,
        dilation: int = 1,
        bias: bool = True,
        dtype=None,
        rngs,
    ):
        size = _pair(size)
        padding = tuple(dilation * (s // 2) for s in size) if padding is None else _pair(padding)
        super().__init__(
            inputs,
            outputs,
            size,
            strides=stride,
            padding=tuple((p, p) for p in padding),  # hashable, as graph definitions are
            kernel_dilation=dilation,
            feature_group_count=groups,
            use_bias=bias,
            kernel_init=nnx.initializers.zeros,
            conv_general_dilated=_convolve,
            dtype=dtype,
            rngs=rngs,
        )

    def apply_kernel(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """[B, H, W, in], [kh, kw, in, any] → [B, H / stride, W / stride, any]; for one group."""
        window = ConvSpec((self.strides,) * 2, self.padding, (self.kernel_dilation,) * 2, precision=self.precision)
        return linear_in_kernel(*self.promote_dtype((x, kernel), dtype=self.dtype), window)


def _convolve(x, kernel, strides, padding, *, rhs_dilation, feature_group_count, precision, **_):
    # flax's way to call a convolution.
    return convolve(x, kernel, ConvSpec(strides, tuple(padding), rhs_dilation, feature_group_count, precision))


class Linear(PartiallyTrainable, nnx.Linear):
    """Dense layer, kernel [in, out]."""

    def __init__(self, inputs: int, outputs: int, *, dtype=None, rngs):
        super().__init__(inputs, outputs, kernel_init=nnx.initializers.zeros, dtype=dtype, rngs=rngs)

    def apply_kernel(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """[B, ..., in], [in, any] → [B, ..., any]."""
        return jnp.matmul(*self.promote_dtype((x, kernel), dtype=self.dtype), precision=self.precision)


class BatchNorm(nnx.BatchNorm):
    """BatchNorm (Ioffe & Szegedy 2015, arXiv:1502.03167) with the constants of `norm`."""

    def __init__(self, features: int, *, norm: BatchNormConfig = TORCH_BN, affine=True, dtype=None, rngs):
        super().__init__(
            features,
            momentum=norm.momentum,
            epsilon=norm.epsilon,
            use_scale=affine and norm.scale,
            use_bias=affine,
            dtype=dtype,
            rngs=rngs,
        )
        self.unbiased = norm.unbiased
        self.frozen = False

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Normalises by the batch when `train` and not frozen, else by the running statistics."""
        rows = [row if row is None else row.get_value() for row in (self.scale, self.bias)]
        before = [statistic.get_value() for statistic in (self.mean, self.var)]
        how = {"epsilon": self.epsilon, "dtype": self.dtype or x.dtype}
        if self.frozen or not train:
            return batch_norm.by_running(x, *before, *rows, **how)
        y, *now = batch_norm.by_batch(x, *rows, **how)
        if self.unbiased:
            n = x.size // x.shape[-1]
            now[1] *= n / max(1, n - 1)
        for statistic, was, is_ in zip((self.mean, self.var), before, now, strict=True):
            statistic.set_value(self.momentum * was + (1 - self.momentum) * is_)
        return y


# The BatchNorm that sees a layer's channels and nothing else, as pairs of a pattern of the layer's path and the norm's.
# Here for `ConvNorm`; a family in which norms follow otherwise has its own.
NORM_AFTER = ((r"(.*)/conv", r"\1/bn"),)


class ConvNorm(nnx.Module):
    """A convolution and its BatchNorm; options as in `Conv`."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: Side = 3,
        *,
        norm: BatchNormConfig = TORCH_BN,
        bias=False,
        dtype=None,
        rngs,
        **options,
    ):
        self.conv = Conv(inputs, outputs, size, bias=bias, dtype=dtype, rngs=rngs, **options)
        self.bn = BatchNorm(outputs, norm=norm, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, in] → [B, H / stride, W / stride, out]."""
        return self.bn(self.conv(x), train)


class LayerNorm(nnx.LayerNorm):
    """LayerNorm over channels (Ba et al. 2016, arXiv:1607.06450)."""

    def __init__(self, features: int, *, epsilon: float = 1e-6, dtype=None, rngs):
        super().__init__(features, epsilon=epsilon, use_fast_variance=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """[..., features] → the same shape; training changes nothing."""
        return super().__call__(x)


class Dropout(nnx.Module):
    """Inverted dropout (Srivastava et al. 2014); the key comes with the call, so no random state is kept.

    Attributes:
      rate: 0 leaves the layer out of the program.
      asked: a rate above 0 that takes its place, a number of the step that the program does not depend on.
    """

    rate_override: jax.Array | None = None

    def __init__(self, rate: float):
        self.rate = rate
        self.frozen = False

    def __call__(self, x: jax.Array, train: bool = False, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Zeroes a `rate` of the entries and scales the rest up, when `train` and not frozen."""
        if not train or self.frozen or self.rate == 0:
            return x
        if rngs is None:
            raise ValueError("dropout in training needs rngs")
        kept = 1 - (self.rate if self.rate_override is None else self.rate_override)
        keep = jax.random.bernoulli(rngs.dropout(), kept, self.units(x.shape))
        return jnp.where(keep, x / kept, 0).astype(x.dtype)

    def units(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of what is kept or dropped as one."""
        return shape


class DropPath(Dropout):
    """Stochastic depth (Huang et al. 2016, arXiv:1603.09382): drops a residual branch, picture by picture."""

    def units(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """One draw for each picture."""
        return (shape[0],) + (1,) * (len(shape) - 1)


def drop_path_rates(last: float, depths: tuple[int, ...]) -> list[list[float]]:
    """The rate of every block, stage by stage: from 0 at the first, growing linearly to `last`."""
    rates = iter(np.linspace(0, last, sum(depths)).tolist())
    return [[next(rates) for _ in range(depth)] for depth in depths]


def max_pool(x: jax.Array, size: int = 2, stride: int = 2, padding: int = 0, ceil: bool = False) -> jax.Array:
    """Max pooling [B, H, W, C]; what does not fill a window is dropped, or with `ceil` a window of its own."""
    ends = (_ceil_padding(length, size, stride, padding) if ceil else padding for length in x.shape[1:3])
    return _max_pool(size, stride, tuple((padding, end) for end in ends), tuple(x.shape[1:3]), x)


# XLA scatters the gradient number by number on a processor, which takes ten times as long as these maps.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _max_pool(size: int, stride: int, pads: tuple, sides: tuple, x: jax.Array) -> jax.Array:
    return functools.reduce(jnp.maximum, _seen_by_pool(size, stride, pads, x))


def _seen_by_pool(size: int, stride: int, pads: tuple, x: jax.Array) -> list[jax.Array]:
    """For each place of the window, row by row, what it meets."""
    x = jax.lax.pad(x, jnp.array(-jnp.inf, x.dtype), ((0, 0, 0), *((*p, 0) for p in pads), (0, 0, 0)))
    height, width = ((side - size) // stride * stride + 1 for side in x.shape[1:3])
    return [x[:, i : i + height : stride, j : j + width : stride] for i, j in np.ndindex(size, size)]


def _max_pool_forward(size: int, stride: int, pads: tuple, sides: tuple, x: jax.Array):
    seen = _seen_by_pool(size, stride, pads, x)
    # Not by equality with the maximum: XLA may compute `x` again for each reader, with other rounding, and where
    # nothing is equal, the gradient would go to the first place.
    most, first = seen[0], jnp.zeros(seen[0].shape, jnp.uint8)
    for place, here in enumerate(seen[1:], start=1):
        first = jnp.where(here > most, jnp.uint8(place), first)
        most = jnp.maximum(most, here)
    return most, first


def _max_pool_backward(size: int, stride: int, pads: tuple, sides: tuple, first: jax.Array, dy: jax.Array):
    zero, dx = jnp.zeros((), dy.dtype), 0
    for place, starts in enumerate(np.ndindex(size, size)):
        ends = zip(starts, pads, sides, dy.shape[1:3], strict=True)
        spread = [(i - low, side + low - i - (n - 1) * stride - 1, stride - 1) for i, (low, _), side, n in ends]
        # Of equal maxima the first has all, as in PyTorch.
        part = jnp.where(first == place, dy, zero)
        dx += jax.lax.pad(part, zero, ((0, 0, 0), *spread, (0, 0, 0)))
    return (dx,)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def average_pool(x: jax.Array, size: int, stride: int = 1, padding: int = 0, count_padding: bool = True) -> jax.Array:
    """Average pooling [B, H, W, C]; padding counts as zeros, as in PyTorch, or not at all, as in Keras."""
    pads = [(padding, padding)] * 2
    return nnx.avg_pool(x, (size, size), strides=(stride, stride), padding=pads, count_include_pad=count_padding)


def average_pool_to(x: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Averages [B, H, W, C] over windows to [B, *grid, C]; the windows are those of torch's AdaptiveAvgPool2d."""
    for axis, size in zip((1, 2), grid, strict=True):
        if x.shape[axis] != size:
            weights = jnp.asarray(_windows(x.shape[axis], size), x.dtype)
            x = jnp.moveaxis(jnp.tensordot(x, weights, (axis, 0)), -1, axis)
    return x


def _windows(length: int, size: int) -> np.ndarray:
    """[length, size]: column i averages the places from ⌊i·length/size⌋ to ⌈(i+1)·length/size⌉."""
    weights = np.zeros((length, size))
    for i in range(size):
        window = slice(i * length // size, -(-(i + 1) * length // size))
        weights[window, i] = 1 / (window.stop - window.start)
    return weights


def _ceil_padding(length: int, size: int, stride: int, padding: int) -> int:
    """The padding at the end that makes room for a last window, which must start before the end of the input."""
    windows = -(-(length + 2 * padding - size) // stride) + 1
    if (windows - 1) * stride >= length + padding:
        windows -= 1
    return (windows - 1) * stride + size - length - padding


def _pair(side: Side) -> tuple[int, int]:
    return (side, side) if isinstance(side, int) else side
