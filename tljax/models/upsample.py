"""Upsampling of feature maps: transposed convolution, interpolation, and padding or cropping to a size."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tljax.models.partial_training import PartiallyTrainable
from tljax.ops.convolution import ConvSpec, convolve, linear_in_kernel


class _ConvTransposeBase(nnx.Module):
    def __init__(self, inputs: int, outputs: int, size: int, *, stride: int, bias: bool, dtype, rngs):
        self.stride = stride
        self.dtype = dtype
        self.kernel = nnx.Param(jnp.zeros((size, size, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self._convolve_transposed(convolve, x, self.kernel.get_value())
        return y if self.bias is None else y + self.bias.get_value().astype(y.dtype)

    def _convolve_transposed(self, conv: Callable, x: jax.Array, kernel: jax.Array) -> jax.Array:
        dtype = self.dtype or jnp.promote_types(x.dtype, kernel.dtype)
        s = self.stride
        m = kernel.shape[0] // s
        outputs = kernel.shape[-1]
        # The kernel consists of m × m tiles of stride × stride taps. Tile t is added t tiles after its location, so
        # each tile of the result depends on m × m locations of the input, up to m - 1 before its own.
        tiles = kernel.astype(dtype).reshape(m, s, m, s, -1, outputs).transpose(0, 2, 4, 1, 3, 5)
        padded = jnp.pad(x.astype(dtype), ((0, 0), (m - 1, m - 1), (m - 1, m - 1), (0, 0)))
        height, width = (length + m - 1 for length in x.shape[1:3])
        starts = [m - 1 - t for t in range(m)]
        patches = jnp.concatenate([padded[:, i : i + height, j : j + width] for i in starts for j in starts], -1)
        y = conv(patches, tiles.reshape(1, 1, patches.shape[-1], -1), ConvSpec())
        y = y.reshape(len(y), height, width, s, s, outputs).swapaxes(2, 3)
        return y.reshape(len(y), height * s, width * s, outputs)


class ConvTranspose(PartiallyTrainable, _ConvTransposeBase):
    """Transposed convolution, NHWC, kernel [size, size, in, out], without cropping of the result.

    Computed as a convolution to stride² · out channels, which are then rearranged to locations of the result; if the
    kernel is as large as the stride, this is a single matrix product.

    Args:
      inputs: number of input channels.
      outputs: number of output channels.
      size: side of the kernel, a multiple of the stride.
      stride: upsampling factor along H and W.
      bias: whether to add a bias.
      dtype: dtype of the computation.
      rngs: unused, as for other layers; initial values come from `tljax.models.initializers`.
    """

    def __init__(self, inputs: int, outputs: int, size: int = 2, *, stride: int = 2, bias=True, dtype=None, rngs):
        super().__init__(inputs, outputs, size, stride=stride, bias=bias, dtype=dtype, rngs=rngs)

    def apply_kernel(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """[B, H, W, in], [size, size, in, any] → [B, (H - 1) · stride + size, (W - 1) · stride + size, any]."""
        return self._convolve_transposed(linear_in_kernel, x, kernel)


def nearest_upsample(x: jax.Array, times: int = 2) -> jax.Array:
    """Repeat each location of [B, H, W, C] `times` × `times` times → [B, times · H, times · W, C]."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, times, width, times, channels))
    return x.reshape(batch, times * height, times * width, channels)


def resize_bilinear(x: jax.Array, size: tuple[int, int], align_corners: bool = False) -> jax.Array:
    """Resize [B, H, W, C] to [B, *size, C] by bilinear interpolation.

    Args:
      x: the input.
      size: height and width of the result.
      align_corners: whether to align the centers of the corner pixels, as in torch, or the image borders.
    """
    for axis, length in zip((1, 2), size, strict=True):
        if x.shape[axis] != length:
            # Matrix products: the gradient of a gather is a scatter, which XLA on CPU runs element by element.
            weights = jnp.asarray(_interpolation_weights(x.shape[axis], length, align_corners), x.dtype)
            x = jnp.moveaxis(jnp.tensordot(x, weights, (axis, 0)), -1, axis)
    return x


def _interpolation_weights(inputs: int, outputs: int, corners: bool) -> np.ndarray:
    """Return [inputs, outputs] weights; column i mixes the two input locations next to output location i."""
    index = np.arange(outputs)
    if corners:
        positions = index * ((inputs - 1) / max(1, outputs - 1))
    else:
        positions = np.clip((index + 0.5) * (inputs / outputs) - 0.5, 0, inputs - 1)
    return np.maximum(0, 1 - np.abs(positions - np.arange(inputs)[:, None]))


def pad_or_crop(x: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """Zero-pad or crop [B, H, W, C] to [B, *size, C] equally on both sides; an odd pixel is added or cut at the end."""
    # int() rounds towards zero, so that one row too many is cut at the end.
    starts = [int((target - side) / 2) for target, side in zip(size, x.shape[1:3], strict=True)]
    pads = [(start, target - side - start, 0) for start, target, side in zip(starts, size, x.shape[1:3], strict=True)]
    return jax.lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *pads, (0, 0, 0)))
