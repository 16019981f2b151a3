"""The layers that every family is made of; all convolutions, norms and dropouts go through here.

Every module is called as `module(x, train=..., rngs=...)`: `train` asks for batch statistics and dropout, `rngs` is the
key that dropout draws from. A BatchNorm or Dropout whose `frozen` is set stays in inference mode all the same: that is
how a phase keeps the frozen part of a network still. Initial values come from `tljax.models.init`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class Conv(nnx.Conv):
    """k×k convolution with PyTorch's symmetric padding (k // 2), NHWC, kernel [k, k, in, out]."""

    def __init__(self, inputs: int, outputs: int, size: int = 3, *, stride=1, bias=True, dtype=None, rngs):
        super().__init__(
            inputs,
            outputs,
            (size, size),
            strides=stride,
            padding=size // 2,
            use_bias=bias,
            dtype=dtype,
            rngs=rngs,
        )


class BatchNorm(nnx.BatchNorm):
    """BatchNorm with PyTorch's constants: momentum 0.1, which is Flax's 0.9, and epsilon 1e-5."""

    def __init__(self, features: int, *, affine=True, dtype=None, rngs):
        super().__init__(
            features,
            momentum=0.9,
            epsilon=1e-5,
            use_scale=affine,
            use_bias=affine,
            # The textbook variance: E[x²]-E[x]² cancels badly where the mean is large beside the spread.
            use_fast_variance=False,
            dtype=dtype,
            rngs=rngs,
        )
        self.frozen = False

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Normalises by the batch when `train` and not frozen, else by the running statistics."""
        return super().__call__(x, use_running_average=self.frozen or not train)


class Dropout(nnx.Module):
    """Inverted dropout (Srivastava et al. 2014); the key comes with the call, so no random state is kept."""

    def __init__(self, rate: float):
        self.rate = rate
        self.frozen = False

    def __call__(self, x: jax.Array, train: bool = False, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Zeroes a `rate` of the entries and scales the rest up, when `train` and not frozen."""
        if not train or self.frozen or self.rate == 0:
            return x
        if rngs is None:
            raise ValueError("dropout in training needs rngs")
        keep = jax.random.bernoulli(rngs.dropout(), 1 - self.rate, x.shape)
        return jnp.where(keep, x / (1 - self.rate), 0).astype(x.dtype)


def max_pool(x: jax.Array, size: int = 2, stride: int = 2) -> jax.Array:
    """Max pooling without padding; the odd last row and column are dropped, as in PyTorch and Keras."""
    return nnx.max_pool(x, (size, size), strides=(stride, stride))


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
