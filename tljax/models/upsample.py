"""Larger maps from smaller ones: transposed convolutions, interpolation, and the last pixels that make sizes agree."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tljax.models.partial_training import PartiallyTrainable
from tljax.ops.convolution import ConvSpec, convolve, linear_in_kernel


class _Transposed(nnx.Module):
    def __init__(self, inputs: int, outputs: int, size: int, *, stride: int, bias: bool, dtype, rngs):
        self.stride, self.dtype = stride, dtype
        self.kernel = nnx.Param(jnp.zeros((size, size, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.spread(convolve, x, self.kernel.get_value())
        return y if self.bias is None else y + self.bias.get_value().astype(y.dtype)

    def spread(self, product: Callable, x: jax.Array, kernel: jax.Array) -> jax.Array:
        dtype, s = self.dtype or jnp.promote_types(x.dtype, kernel.dtype), self.stride
        m, outputs = kernel.shape[0] // s, kernel.shape[-1]
        # The kernel's tile t lies t tiles further on: a place of the result sees the map's places up to m - 1 before.
        tiles = kernel.astype(dtype).reshape(m, s, m, s, -1, outputs).transpose(0, 2, 4, 1, 3, 5)
        padded = jnp.pad(x.astype(dtype), ((0, 0), (m - 1, m - 1), (m - 1, m - 1), (0, 0)))
        height, width = (length + m - 1 for length in x.shape[1:3])
        starts = [m - 1 - t for t in range(m)]
        seen = jnp.concatenate([padded[:, i : i + height, j : j + width] for i in starts for j in starts], -1)
        y = product(seen, tiles.reshape(1, 1, seen.shape[-1], -1), ConvSpec())
        y = y.reshape(len(y), height, width, s, s, outputs).swapaxes(2, 3)
        return y.reshape(len(y), height * s, width * s, outputs)


class ConvTranspose(PartiallyTrainable, _Transposed):
    """Transposed convolution, NHWC, kernel [size, size, in, out]: each place adds its own copy of the kernel.

    It is a convolution to stride² · out channels, which are then laid out over the places that they are for; with a
    kernel as large as the stride that is one product.

    Args:
      inputs: channels.
      outputs: channels.
      size: of the kernel, a multiple of the stride.
      stride: places of the result for each place of the map.
      bias: whether there is one.
      dtype: of the computation.
      rngs: as for other layers; initial values come from `tljax.models.initializers`.
    """

    def __init__(self, inputs: int, outputs: int, size: int = 2, *, stride: int = 2, bias=True, dtype=None, rngs):
        super().__init__(inputs, outputs, size, stride=stride, bias=bias, dtype=dtype, rngs=rngs)

    def apply_kernel(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """[B, H, W, in], [size, size, in, any] → [B, (H - 1) · stride + size, (W - 1) · stride + size, any]."""
        return self.spread(linear_in_kernel, x, kernel)


def nearest_upsample(x: jax.Array, times: int = 2) -> jax.Array:
    """[B, H, W, C] → [B, times · H, times · W, C], each place `times` × `times` times."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, times, width, times, channels))
    return x.reshape(batch, times * height, times * width, channels)


def bilinear(x: jax.Array, size: tuple[int, int], corners: bool = False) -> jax.Array:
    """Interpolates [B, H, W, C] to [B, *size, C].

    Args:
      x: the map.
      size: of the result, along H and W.
      corners: whether the middles of the corner places fall on each other, as torch has it with align_corners=True;
        otherwise the borders of the maps do.
    """
    for axis, length in zip((1, 2), size, strict=True):
        if x.shape[axis] != length:
            # Products: the gradient of a gather would be a scatter, which a processor does number by number.
            weights = jnp.asarray(_weights(x.shape[axis], length, corners), x.dtype)
            x = jnp.moveaxis(jnp.tensordot(x, weights, (axis, 0)), -1, axis)
    return x


def _weights(inputs: int, outputs: int, corners: bool) -> np.ndarray:
    """[inputs, outputs]: column i mixes the two places that are next to where the result's place i lies."""
    places = np.arange(outputs)
    if corners:
        where = places * ((inputs - 1) / max(1, outputs - 1))
    else:
        where = np.clip((places + 0.5) * (inputs / outputs) - 0.5, 0, inputs - 1)
    return np.maximum(0, 1 - np.abs(where - np.arange(inputs)[:, None]))


def pad_or_crop(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Pads with zeros or crops [B, H, W, C] to [B, *size, C], alike on both sides, by an odd pixel more at the end."""
    # int rounds towards zero, so that of one row too many the last one goes.
    starts = [int((wanted - have) / 2) for wanted, have in zip(size, x.shape[1:3], strict=True)]
    pads = [(a, wanted - have - a, 0) for a, wanted, have in zip(starts, size, x.shape[1:3], strict=True)]
    return jax.lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *pads, (0, 0, 0)))
