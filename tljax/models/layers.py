"""Layers of all model families: convolutions, dense layers, norms, dropout and pooling.

Modules are called as `module(x, train=..., rngs=...)`: `train` selects batch statistics and dropout, `rngs` is read by
dropout. A BatchNorm or Dropout with `frozen` set stays in inference mode in training too; this is how a phase freezes
parts of a network. A layer with `channels` set trains only these output channels. Initial values come from
`tljax.models.initializers`.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tljax.models.partial_training import PartiallyTrainable
from tljax.ops import batch_norm
from tljax.ops.convolution import ConvSpec, convolve, linear_in_kernel

Side = int | tuple[int, int]


class BatchNormConfig(NamedTuple):
    """Constants of a BatchNorm, which differ between libraries and networks.

    Attributes:
      epsilon: added to the variance.
      momentum: weight of the old running statistics in an update; PyTorch's 0.1 is 0.9 here.
      unbiased: whether the running variance is updated with the batch variance times n / (n - 1).
      scale: whether there is a scale (gamma).
    """

    epsilon: float = 1e-5
    momentum: float = 0.9
    unbiased: bool = True
    scale: bool = True


TORCH_BN = BatchNormConfig()
# Keras' ResNet and DenseNet; momentum is Keras' default.
KERAS_BN = BatchNormConfig(epsilon=1.001e-5, momentum=0.99, unbiased=False)


class Conv(PartiallyTrainable, nnx.Conv):
    """Convolution, NHWC, kernel [kh, kw, in / groups, out], padded equally on both sides unless `padding` is "same".

    Args:
      inputs: number of input channels.
      outputs: number of output channels.
      size: side of the kernel, or (height, width).
      stride: along H and W.
      padding: pixels on each side; None keeps the input's side at stride 1, for odd kernels; "same" pads as TensorFlow,
        to ⌈side / stride⌉ locations, with one pixel more at the end where the number is odd.
      groups: number of channel groups that are convolved separately.
      dilation: distance between kernel taps.
      bias: whether to add a bias.
      dtype: dtype of the computation.
      rngs: required by Flax; initial values come from `tljax.models.initializers`.
    """

    strides: Any
    padding: Any
    kernel_dilation: Any

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: Side = 3,
        *,
        stride: int = 1,
        padding: Side | str | None = None,
        groups: int = 1,
        dilation: int = 1,
        bias: bool = True,
        dtype=None,
        rngs,
    ):
        size = _pair(size)
        if isinstance(padding, str):
            padded: Any = padding.upper()
        else:
            pads = tuple(dilation * (s // 2) for s in size) if padding is None else _pair(padding)
            padded = tuple((p, p) for p in pads)  # tuples: graph definitions must be hashable
        super().__init__(
            inputs,
            outputs,
            size,
            strides=stride,
            padding=padded,
            kernel_dilation=dilation,
            feature_group_count=groups,
            use_bias=bias,
            kernel_init=nnx.initializers.zeros,
            conv_general_dilated=_convolve,
            dtype=dtype,
            rngs=rngs,
        )

    def apply_kernel(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """Convolve [B, H, W, in] with [kh, kw, in, any] → [B, H / stride, W / stride, any]; one group only."""
        spec = ConvSpec((self.strides,) * 2, self.padding, (self.kernel_dilation,) * 2, precision=self.precision)
        return linear_in_kernel(*self.promote_dtype((x, kernel), dtype=self.dtype), spec)


def _convolve(x, kernel, strides, padding, *, rhs_dilation, feature_group_count, precision, **_):
    # The signature with which nnx.Conv calls `conv_general_dilated`.
    padding = padding if isinstance(padding, str) else tuple(padding)
    return convolve(x, kernel, ConvSpec(strides, padding, rhs_dilation, feature_group_count, precision))


class Linear(PartiallyTrainable, nnx.Linear):
    """Dense layer, kernel [in, out]."""

    def __init__(self, inputs: int, outputs: int, *, dtype=None, rngs):
        super().__init__(inputs, outputs, kernel_init=nnx.initializers.zeros, dtype=dtype, rngs=rngs)

    def apply_kernel(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """Multiply [B, ..., in] by [in, any] → [B, ..., any]."""
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
        """Normalize [..., C] by batch statistics if `train` and not frozen, otherwise by running statistics."""
        scale, bias = (param if param is None else param.get_value() for param in (self.scale, self.bias))
        options = {"epsilon": self.epsilon, "dtype": self.dtype or x.dtype}
        running_mean = self.mean.get_value()
        running_var = self.var.get_value()
        if self.frozen or not train:
            return batch_norm.normalize_by_running_stats(x, running_mean, running_var, scale, bias, **options)
        y, mean, var = batch_norm.normalize_by_batch_stats(x, scale, bias, **options)
        if self.unbiased:
            n = x.size // x.shape[-1]
            var *= n / max(1, n - 1)
        self.mean.set_value(self.momentum * running_mean + (1 - self.momentum) * mean)
        self.var.set_value(self.momentum * running_var + (1 - self.momentum) * var)
        return y


# (pattern, replacement) pairs from a layer's path to that of the BatchNorm that reads this layer's channels and no
# others. These are for `ConvNorm`; a family whose norms are placed differently defines its own.
NORM_AFTER = ((r"(.*)/conv", r"\1/bn"),)


class ConvNorm(nnx.Module):
    """A convolution followed by BatchNorm; `options` are passed to `Conv`."""

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
        """Normalize [..., features] over the last axis, in training and inference alike."""
        return super().__call__(x)


class Dropout(nnx.Module):
    """Inverted dropout (Srivastava et al. 2014); stateless, the random key is an argument of the call.

    Attributes:
      rate: fraction of dropped units; 0 removes the layer from the compiled program.
      rate_override: traced rate above 0 that replaces `rate`, so that one program serves several rates.
      frozen: whether the layer is the identity in training too.
    """

    rate_override: jax.Array | None = None

    def __init__(self, rate: float):
        self.rate = rate
        self.frozen = False

    def __call__(self, x: jax.Array, train: bool = False, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Zero a fraction `rate` of the units of `x` and scale up the rest, if `train` and not frozen."""
        if not train or self.frozen or self.rate == 0:
            return x
        if rngs is None:
            raise ValueError("dropout in training needs rngs")
        keep_rate = 1 - (self.rate if self.rate_override is None else self.rate_override)
        mask = jax.random.bernoulli(rngs.dropout(), keep_rate, self.mask_shape(x.shape))
        return jnp.where(mask, x / keep_rate, 0).astype(x.dtype)

    def mask_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the dropout mask for an input of this shape."""
        return shape


class DropPath(Dropout):
    """Stochastic depth (Huang et al. 2016, arXiv:1603.09382): drops a residual branch for whole images."""

    def mask_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of one value per image."""
        return (shape[0],) + (1,) * (len(shape) - 1)


def drop_path_rates(last: float, depths: tuple[int, ...]) -> list[list[float]]:
    """Return the drop rate of every block by stage, growing linearly from 0 to `last`."""
    rates = iter(np.linspace(0, last, sum(depths)).tolist())
    return [[next(rates) for _ in range(depth)] for depth in depths]


def max_pool(x: jax.Array, size: int = 2, stride: int = 2, padding: int = 0, ceil: bool = False) -> jax.Array:
    """Apply max pooling to [B, H, W, C].

    Args:
      x: the input.
      size: side of the window.
      stride: along H and W.
      padding: of -inf on each side.
      ceil: whether pixels that do not fill a last window get a window anyway (torch's ceil_mode) or are dropped.
    """
    sides = tuple(x.shape[1:3])
    ends = (_ceil_padding(side, size, stride, padding) if ceil else padding for side in sides)
    return _max_pool(size, stride, tuple((padding, end) for end in ends), sides, x)


# A custom gradient: XLA's is a scatter, which runs element by element on a CPU and takes ten times as long.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _max_pool(size: int, stride: int, pads: tuple, sides: tuple, x: jax.Array) -> jax.Array:
    return functools.reduce(jnp.maximum, _shifted_inputs(size, stride, pads, x))


def _shifted_inputs(size: int, stride: int, pads: tuple, x: jax.Array) -> list[jax.Array]:
    """Return, for each offset in the window row by row, the values there: a list of [B, H', W', C]."""
    x = jax.lax.pad(x, jnp.array(-jnp.inf, x.dtype), ((0, 0, 0), *((*p, 0) for p in pads), (0, 0, 0)))
    height, width = ((side - size) // stride * stride + 1 for side in x.shape[1:3])
    return [x[:, i : i + height : stride, j : j + width : stride] for i, j in np.ndindex(size, size)]


def _max_pool_forward(size: int, stride: int, pads: tuple, sides: tuple, x: jax.Array):
    # The argmax is tracked here instead of compared with the maximum in the backward pass: XLA may recompute `x` for
    # each consumer with different rounding, and where no value equals the maximum the gradient would be misplaced.
    maximum, *others = _shifted_inputs(size, stride, pads, x)
    argmax = jnp.zeros(maximum.shape, jnp.uint8)
    for offset, values in enumerate(others, start=1):
        argmax = jnp.where(values > maximum, jnp.uint8(offset), argmax)
        maximum = jnp.maximum(maximum, values)
    return maximum, argmax


def _max_pool_backward(size: int, stride: int, pads: tuple, sides: tuple, argmax: jax.Array, dy: jax.Array):
    zero = jnp.zeros((), dy.dtype)
    dx = 0
    for offset, starts in enumerate(np.ndindex(size, size)):
        axes = zip(starts, pads, sides, dy.shape[1:3], strict=True)
        spread = [(i - low, side + low - i - (n - 1) * stride - 1, stride - 1) for i, (low, _), side, n in axes]
        # Of equal maxima the first gets the whole gradient, as in PyTorch.
        selected = jnp.where(argmax == offset, dy, zero)
        dx += jax.lax.pad(selected, zero, ((0, 0, 0), *spread, (0, 0, 0)))
    return (dx,)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def average_pool(x: jax.Array, size: int, stride: int = 1, padding: int = 0, count_padding: bool = True) -> jax.Array:
    """Apply average pooling to [B, H, W, C]; `count_padding` averages padding in as zeros (PyTorch, not Keras)."""
    pads: Any = [(padding, padding)] * 2
    return nnx.avg_pool(x, (size, size), strides=(stride, stride), padding=pads, count_include_pad=count_padding)


def average_pool_to(x: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Average [B, H, W, C] over windows to [B, *grid, C], with the windows of torch's AdaptiveAvgPool2d."""
    for axis, size in zip((1, 2), grid, strict=True):
        if x.shape[axis] != size:
            weights = jnp.asarray(_averaging_weights(x.shape[axis], size), x.dtype)
            x = jnp.moveaxis(jnp.tensordot(x, weights, (axis, 0)), -1, axis)
    return x


def _averaging_weights(length: int, size: int) -> np.ndarray:
    """Return [length, size] weights; column i averages from ⌊i·length/size⌋ to ⌈(i+1)·length/size⌉."""
    weights = np.zeros((length, size))
    for i in range(size):
        window = slice(i * length // size, -(-(i + 1) * length // size))
        weights[window, i] = 1 / (window.stop - window.start)
    return weights


def _ceil_padding(length: int, size: int, stride: int, padding: int) -> int:
    """Return the end padding that makes room for a last window, which must start before the end of the input."""
    windows = -(-(length + 2 * padding - size) // stride) + 1
    if (windows - 1) * stride >= length + padding:
        windows -= 1
    return (windows - 1) * stride + size - length - padding


def _pair(side: Side) -> tuple[int, int]:
    return (side, side) if isinstance(side, int) else side
