"""Convolution in the form that the backend does best: XLA's own, or products of matrices on a processor.

On a GPU or TPU, it is `jax.lax.conv_general_dilated`. On a CPU `rule` chooses a form by shape, for the value and for
each gradient. GFLOP/s, two cores of a Zen 4 shared with other work, jaxlib 0.10.2, XLA's form → the form chosen, when
a product of large matrices reached 150 to 190 (`benchmarks/convolutions.py` measures it on another machine):

- 1×1 kernels are products. On [16, 16, 16, 64] → 256 channels: 87 → 159; the kernel's gradient 48 → 109, and by
  `columns`, where XLA's form is a convolution over the batch, 26 → 65 and 53 → 129 ([16, 8, 8, 512] → 128).
- Maps of at most 4 × 4 places are `im2col` and a product. XLA has no fast path for a kernel larger than the map:
  3×3, 512 → 512 channels on 2 × 2 places: 1 → 105, its input's gradient by the transpose of `im2col` 1 → 116; at
  stride 2 from 4 × 4 places 1 → 63 to 119. Larger patches outgrow the caches: 98 → 17 on [8, 56, 56, 64] float32.
- The input's gradient at stride 2 on a result of 8 × 8 places and less: `im2col`, 69 → 82, 97 → 136.
- Products of bfloat16 are up to 2.2 times as fast as those of float32, XLA's convolutions of bfloat16 are not. Results
  of up to 16 × 16 places are `rows`: 181 → 284 on [32, 16, 16, 256], 176 → 310 on [32, 8, 8, 512], 173 → 287 on
  [32, 4, 4, 512]; of up to 32 × 32 places a `wide_matmul`: 146 → 221 on [32, 32, 32, 128], where `rows` reach 162.
- Depthwise kernels are sums of shifted maps, `depthwise_shift`: 8 to 29 times as fast for ConvNeXt's 7×7.

No faster on the shapes of ResNet-50, or slower: one product for each place of a kernel, patches picture by picture,
gradients by stride-phases, three-dimensional convolutions of unit depth; and for the 7×7 stem at stride 2 on 224×224
pictures, space-to-depth (89 → 20, the kernel's gradient 34 → 18) and `im2col` (26, 24). BatchNorm folded into the
kernels of a network in inference mode gains nothing, 0.96 to 1.02 times the speed on ResNet-50, DenseNet-121 and
Inception v3: it stands in one loop with the ReLU, which has to go over the map anyway.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

Shape = tuple[int, ...]
NO_PADDING = ((0, 0), (0, 0))


class ConvSpec(NamedTuple):
    """All of a convolution but its arrays.

    Attributes:
      strides: along H and W.
      padding: zeros before and after, along H and W.
      dilation: distance of the kernel's places along H and W.
      groups: of channels that do not see each other.
      precision: of products, as in `jax.lax`.
    """

    strides: tuple[int, int] = (1, 1)
    padding: tuple[tuple[int, int], tuple[int, int]] = NO_PADDING
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    precision: jax.lax.PrecisionLike = None


class ConvAlgorithms(NamedTuple):
    """Names in `FORMS`: what computes the value, and whose transposes compute the gradients."""

    value: str
    to_input: str
    to_kernel: str


NATIVE = ConvAlgorithms("xla_conv", "xla_conv", "xla_conv")
# How many places of the result one step of `rows` computes, about: what it reads and writes then stays in the caches.
PLACES = 1024


def convolve(x: jax.Array, kernel: jax.Array, window: ConvSpec) -> jax.Array:
    """[B, H, W, in], [kh, kw, in / groups, out] → [B, H', W', out]."""
    forms = select_algorithms(x.shape, kernel.shape, window, x.dtype)
    return (
        xla_conv(x, kernel, window) if forms == NATIVE else _convolve((forms, window, x.shape, kernel.shape), x, kernel)
    )


def linear_in_kernel(x: jax.Array, kernel: jax.Array, window: ConvSpec) -> jax.Array:
    """The same, for `jax.linear_transpose` with respect to the kernel."""
    return ALGORITHMS[select_algorithms(x.shape, kernel.shape, window, x.dtype).to_kernel](x, kernel, window)


def select_algorithms(x: Shape, kernel: Shape, window: ConvSpec, dtype) -> ConvAlgorithms:
    """The forms for arrays of these shapes and of this dtype."""
    side = max(_lengths(x, kernel, window))
    if jax.default_backend() != "cpu" or min(_lengths(x, kernel, window)) < 1:
        return NATIVE
    if window.groups > 1:
        return (
            ConvAlgorithms("depthwise_shift", "depthwise_shift", "depthwise_shift")
            if window.groups == x[-1] == kernel[-1]
            else NATIVE
        )
    if kernel[:2] == (1, 1):
        return ConvAlgorithms("im2col", "im2col", "columns")
    strided, wide = max(window.strides) > 1, min(x[-1], kernel[-1]) >= 64
    if dtype == jnp.bfloat16 and side <= 32 and wide:
        value = "wide_matmul" if side > 16 and not strided else "rows"
        return ConvAlgorithms(value, "im2col" if strided else "rows", "columns" if side <= 4 else "xla_conv")
    if side <= 4:
        return ConvAlgorithms("im2col", "im2col", "columns")
    return ConvAlgorithms("xla_conv", "im2col" if strided and side <= 8 else "xla_conv", "xla_conv")


@functools.cache
def inference_options() -> dict[str, str]:
    """Options of the compiler for programs without gradients of convolutions.

    On a processor, jaxlib 0.10 gives convolutions in float32 to YNNPACK, which is the faster one for gradients, and for
    a network's forward pass the slower one: Eigen's are 1.34 times as fast in VGG-16 (64×64), 1.28 in DenseNet-121
    (64×64), 1.8 in Inception v3 (128×128), 1.35 in ResNet-8 (28×28), 1.04 to 1.09 in ResNet-50.
    """
    options = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:  # a compiler that has no such option
        return {}
    return options


def xla_conv(x: jax.Array, kernel: jax.Array, window: ConvSpec) -> jax.Array:
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


def im2col(x: jax.Array, kernel: jax.Array, window: ConvSpec) -> jax.Array:
    """All that the window sees, [B, H', W', kh · kw · in], times the kernel as a matrix."""
    seen = jnp.concatenate(list(_receptive(_padded(x, window), kernel.shape, window)), -1)
    return _product(seen, kernel.reshape(-1, kernel.shape[-1]), window).astype(x.dtype)


def columns(x: jax.Array, kernel: jax.Array, window: ConvSpec) -> jax.Array:
    """The same with patches as columns, [kh · kw · in, B · H' · W']: its transpose in the kernel is a plain product.

    The library behind XLA's products has no kernel for one that contracts the rows of both its factors.
    """
    # The barriers keep the compiler from making x again for it, across its order in memory, and from putting the
    # transposition back into the product.
    x = jax.lax.optimization_barrier(x)
    seen = jnp.concatenate(list(_receptive(_padded(x, window), kernel.shape, window)), -1)
    matrix = jax.lax.optimization_barrier(seen.reshape(-1, seen.shape[-1]).T)
    y = _product(matrix, kernel.reshape(-1, kernel.shape[-1]), window, axis=0)
    return y.reshape(*seen.shape[:-1], -1).astype(x.dtype)


def rows(x: jax.Array, kernel: jax.Array, window: ConvSpec) -> jax.Array:
    """A product for each row of the kernel and what that row sees, a few pictures at a time."""
    matrices = kernel.reshape(kernel.shape[0], -1, kernel.shape[-1])

    def convolved(seen: jax.Array, meets: list[slice]) -> jax.Array:
        return sum(_product(seen[:, where], matrix, window) for where, matrix in zip(meets, matrices, strict=True))

    return _by_row(convolved, x, kernel, window, PLACES)


def wide_matmul(x: jax.Array, kernel: jax.Array, window: ConvSpec) -> jax.Array:
    """One product of what a row of the kernel sees and all rows side by side, of which the right parts are summed."""
    side_by_side = jnp.moveaxis(kernel.reshape(kernel.shape[0], -1, kernel.shape[-1]), 0, 1)

    def convolved(seen: jax.Array, meets: list[slice]) -> jax.Array:
        y = _product(seen, side_by_side.reshape(seen.shape[-1], -1), window)
        y = y.reshape(*seen.shape[:3], kernel.shape[0], -1)
        return sum(y[:, where, :, i] for i, where in enumerate(meets))

    return _by_row(convolved, x, kernel, window, 4 * PLACES)


def depthwise_shift(x: jax.Array, kernel: jax.Array, window: ConvSpec) -> jax.Array:
    """Depthwise: the sum over the kernel's places of shifted maps times a number for each channel."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    numbers = kernel.reshape(-1, kernel.shape[-1]).astype(wide)
    maps = _receptive(_padded(x, window).astype(wide), kernel.shape, window)
    return sum(m * n for m, n in zip(maps, numbers, strict=True)).astype(x.dtype)


ALGORITHMS = {form.__name__: form for form in (xla_conv, im2col, columns, rows, wide_matmul, depthwise_shift)}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(static, x: jax.Array, kernel: jax.Array) -> jax.Array:
    forms, window, *_ = static
    return ALGORITHMS[forms.value](x, kernel, window)


def _forward(static, x, kernel):
    # Where one of the two needs no gradient, nothing is kept or computed for it.
    saved = x.value if kernel.perturbed else None, kernel.value if x.perturbed else None
    return _convolve(static, x.value, kernel.value), saved


def _backward(static, saved, dy: jax.Array):
    (forms, window, *shapes), (x, kernel) = static, saved
    x_like, kernel_like = (jax.ShapeDtypeStruct(shape, dy.dtype) for shape in shapes)
    dx = dkernel = None
    if kernel is not None and forms.to_input == "rows":
        # At stride 1 the gradient is itself the convolution with the kernel turned around.
        ends = zip(window.dilation, kernel.shape, window.padding, strict=False)
        padding = tuple((d * (k - 1) - before, d * (k - 1) - after) for d, k, (before, after) in ends)
        dx = rows(dy, kernel[::-1, ::-1].swapaxes(2, 3), window._replace(padding=padding))
    elif kernel is not None:
        (dx,) = jax.linear_transpose(lambda x: ALGORITHMS[forms.to_input](x, kernel, window), x_like)(dy)
    if x is not None:
        (dkernel,) = jax.linear_transpose(lambda k: ALGORITHMS[forms.to_kernel](x, k, window), kernel_like)(dy)
    return dx, dkernel


_convolve.defvjp(_forward, _backward, symbolic_zeros=True)


def _padded(x: jax.Array, window: ConvSpec) -> jax.Array:
    return jax.lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((*p, 0) for p in window.padding), (0, 0, 0)))


def _receptive(x: jax.Array, kernel: Shape, window: ConvSpec) -> Iterator[jax.Array]:
    """For each place of the kernel, row by row, what it meets on a padded map: [B, H', W', in]."""
    height, width = _lengths(x.shape, kernel, window._replace(padding=NO_PADDING))
    (down, right), (i_step, j_step) = window.strides, window.dilation
    for i in range(0, kernel[0] * i_step, i_step):
        for j in range(0, kernel[1] * j_step, j_step):
            yield x[:, i : i + (height - 1) * down + 1 : down, j : j + (width - 1) * right + 1 : right]


def _by_row(convolved, x: jax.Array, kernel: jax.Array, window: ConvSpec, places: int) -> jax.Array:
    """Calls `convolved(seen, meets)` for a few pictures at a time, about so many places of the result.

    `seen` [b, H, W', kw · in] is what a row of the kernel sees of each row of the map, `meets` which rows of the map
    each row of the kernel meets.
    """
    x, (down, right) = _padded(x, window), window.strides
    height, width = _lengths(x.shape, kernel.shape, window._replace(padding=NO_PADDING))
    starts = range(0, kernel.shape[0] * window.dilation[0], window.dilation[0])
    meets = [slice(start, start + (height - 1) * down + 1, down) for start in starts]

    def of(x: jax.Array) -> jax.Array:
        seen = _receptive(x, (1, *kernel.shape[1:]), window._replace(strides=(1, right)))
        return convolved(jnp.concatenate(list(seen), -1), meets).astype(x.dtype)

    pictures = max(1, places // (height * width))
    if x.shape[0] % pictures or x.shape[0] == pictures:
        return of(x)
    y = jax.lax.map(of, x.reshape(-1, pictures, *x.shape[1:]))
    return y.reshape(-1, *y.shape[2:])


def _lengths(x: Shape, kernel: Shape, window: ConvSpec) -> list[int]:
    """Of the result, along H and W."""
    axes = zip(x[1:3], kernel[:2], window.strides, window.padding, window.dilation, strict=True)
    return [(side + sum(pads) - dilation * (size - 1) - 1) // stride + 1 for side, size, stride, pads, dilation in axes]


def _product(a: jax.Array, b: jax.Array, window: ConvSpec, axis: int = -1) -> jax.Array:
    # Sums are at least float32, as XLA's convolutions have them.
    wide = jnp.promote_types(a.dtype, jnp.float32)
    contracted = ((axis % a.ndim,), (0,)), ((), ())
    return jax.lax.dot_general(a, b, contracted, precision=window.precision, preferred_element_type=wide)
