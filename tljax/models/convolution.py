"""Convolution in the form that the backend does best."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

Pads = tuple[tuple[int, int], tuple[int, int]]


class Window(NamedTuple):
    """All of a convolution but its arrays.

    Attributes:
      strides, padding, dilation: along H and W.
      groups: of channels that do not see each other.
      precision: of products, as in `jax.lax`.
    """

    strides: tuple[int, int] = (1, 1)
    padding: Pads = ((0, 0), (0, 0))
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    precision: object = None


class Forms(NamedTuple):
    """Names of the forms that compute the convolution, and of those whose transposes compute its gradients."""

    value: str
    to_input: str
    to_kernel: str


def convolve(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """[B, H, W, in], [kh, kw, in / groups, out] → [B, H', W', out]."""
    if jax.default_backend() != "cpu":
        return native(x, kernel, window)
    return _convolve(window, x, kernel)


def convolve_in_kernel(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """The same in the form for `jax.linear_transpose` with respect to the kernel."""
    if jax.default_backend() != "cpu":
        return native(x, kernel, window)
    return FORMS[rule(x.shape, kernel.shape, window, x.dtype).to_kernel](x, kernel, window)


def native(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """XLA's convolution."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window.strides,
        window.padding,
        rhs_dilation=window.dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=window.groups,
        precision=window.precision,
    )


def patches(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """One product of all that the window sees, [B, H', W', kh · kw · in], and the kernel."""
    seen = jnp.concatenate(list(shifted(x, kernel.shape, window)), -1)
    return _product(seen, kernel.reshape(-1, kernel.shape[-1]), window)


def taps(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Depthwise: a sum over the kernel's places of shifted maps times a number for each channel."""
    numbers = kernel.reshape(-1, kernel.shape[-1])
    total = sum(map(jnp.multiply, shifted(x.astype(_accumulator(x)), kernel.shape, window), numbers))
    return total.astype(x.dtype)


FORMS = {"native": native, "patches": patches, "taps": taps}


def shifted(x: jax.Array, kernel: tuple[int, ...], window: Window):
    """For each place of the kernel, row by row, what it meets: [B, H', W', in]."""
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((*p, 0) for p in window.padding), (0, 0, 0)))
    lengths = _lengths(x.shape[1:3], kernel, window._replace(padding=((0, 0), (0, 0))))
    (height, width), (down, right) = lengths, window.strides
    for i in range(0, kernel[0] * window.dilation[0], window.dilation[0]):
        for j in range(0, kernel[1] * window.dilation[1], window.dilation[1]):
            yield x[:, i : i + (height - 1) * down + 1 : down, j : j + (width - 1) * right + 1 : right]


def rule(x: tuple[int, ...], kernel: tuple[int, ...], window: Window, dtype) -> Forms:
    """The forms for arrays of these shapes."""
    height, width = _lengths(x[1:3], kernel, window)
    if not (height > 0 and width > 0 and jnp.issubdtype(dtype, jnp.floating)):
        return Forms("native", "native", "native")
    if window.groups > 1:
        depthwise = window.groups == x[-1] == kernel[-1]
        return Forms(*("taps" if depthwise else "native",) * 3)
    if kernel[:2] == (1, 1):
        return Forms("patches", "patches", "patches")
    if max(height, width) <= 8 or (max(window.strides) > 1 and max(height, width) <= 14):
        return Forms("patches", "patches", "patches")
    return Forms("native", "native", "native")


def _lengths(sides: tuple[int, int], kernel: tuple[int, ...], window: Window) -> list[int]:
    # Of the result, along H and W.
    parts = zip(sides, kernel, *window[:3], strict=False)
    return [(side + sum(pads) - dilation * (size - 1) - 1) // stride + 1 for side, size, stride, pads, dilation in parts]


def _accumulator(x: jax.Array):
    return jnp.promote_types(x.dtype, jnp.float32)


def _product(a: jax.Array, b: jax.Array, window: Window) -> jax.Array:
    return jnp.matmul(a, b, precision=window.precision, preferred_element_type=_accumulator(a)).astype(a.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(window: Window, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return FORMS[rule(x.shape, kernel.shape, window, x.dtype).value](x, kernel, window)


def _forward(window: Window, x, kernel):
    # What nobody differentiates with respect to needs nothing kept, and no gradient computed.
    saved = (x.value if kernel.perturbed else None, kernel.value if x.perturbed else None)
    shapes = jax.ShapeDtypeStruct(x.value.shape, x.value.dtype), jax.ShapeDtypeStruct(kernel.value.shape, x.value.dtype)
    return _convolve(window, x.value, kernel.value), (saved, _Static(shapes))


def _backward(window: Window, residuals, dy: jax.Array):
    (x, kernel), (like_x, like_kernel) = residuals[0], residuals[1].value
    forms = rule(like_x.shape, like_kernel.shape, window, dy.dtype)
    dx = dkernel = None
    if kernel is not None:
        (dx,) = jax.linear_transpose(lambda x: FORMS[forms.to_input](x, kernel, window), like_x)(dy)
    if x is not None:
        (dkernel,) = jax.linear_transpose(lambda k: FORMS[forms.to_kernel](x, k, window), like_kernel)(dy)
    return dx, dkernel


@jax.tree_util.register_static
class _Static:
    # Shapes among the residuals.

    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return self.value == other.value

    def __hash__(self):
        return hash(self.value)


_convolve.defvjp(_forward, _backward, symbolic_zeros=True)
