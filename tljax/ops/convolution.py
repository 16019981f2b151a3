"""Convolutions by the fastest algorithm for the backend: XLA's convolution, or matrix products on a CPU.

On a GPU or TPU this is `jax.lax.conv_general_dilated`. On a CPU `select_algorithms` chooses by shape, separately for
the value and for each gradient. Measurements in GFLOP/s, XLA's convolution → the chosen algorithm (two cores of a
shared Zen 4, jaxlib 0.10.2, where a product of large matrices reached 150 to 190; `benchmarks/convolutions.py` repeats
them):

- 1×1 kernels are matrix products. [16, 16, 16, 64] → 256 channels: 87 → 159, the kernel's gradient 48 → 109; with
  `columns`, where XLA computes a convolution over the batch, 26 → 65 and 53 → 129 ([16, 8, 8, 512] → 128 channels).
- Results of at most 4 × 4 locations use `im2col` and a product. XLA has no fast path for kernels larger than the
  feature map: 3×3, 512 → 512 channels on 2 × 2 locations: 1 → 105, the input's gradient by the transpose of `im2col`
  1 → 116; at stride 2 from 4 × 4 locations 1 → 63 to 119. Larger patches do not fit the caches: 98 → 17 on
  [8, 56, 56, 64] in float32.
- The input's gradient at stride 2, for results of at most 8 × 8 locations, uses `im2col`: 69 → 82, 97 → 136.
- Products of bfloat16 are up to 2.2 times as fast as those of float32, but XLA's convolutions of bfloat16 are not.
  Results of up to 16 × 16 locations use `rows`: 181 → 284 on [32, 16, 16, 256], 176 → 310 on [32, 8, 8, 512],
  173 → 287 on [32, 4, 4, 512]; of up to 32 × 32 locations `wide_matmul`: 146 → 221 on [32, 32, 32, 128], where `rows`
  reaches 162.
- Depthwise kernels are sums of shifted feature maps, `depthwise_shift`: 8 to 29 times as fast for ConvNeXt's 7×7.

Tried and no faster on the shapes of ResNet-50: one product for each kernel tap, patches image by image, gradients by
stride phases, three-dimensional convolutions of unit depth; and for the 7×7 stem at stride 2 on 224×224 images,
space-to-depth (89 → 20, the kernel's gradient 34 → 18) and `im2col` (26, 24). Folding BatchNorm into the kernels for
inference gains nothing (0.96 to 1.02 times the speed on ResNet-50, DenseNet-121 and Inception v3): XLA fuses it with
the ReLU, which has to read the feature map anyway.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Shape = tuple[int, ...]
NO_PADDING = ((0, 0), (0, 0))


class ConvSpec(NamedTuple):
    """The static parameters of a convolution.

    Attributes:
      strides: along H and W.
      padding: zeros ((before, after), (before, after)) along H and W; or "SAME", TensorFlow's padding, which depends on
        the input's side.
      dilation: distance between kernel taps along H and W.
      groups: number of channel groups that are convolved separately.
      precision: of products, as in `jax.lax`.
    """

    strides: tuple[int, int] = (1, 1)
    padding: Any = NO_PADDING
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    precision: jax.lax.PrecisionLike = None


class ConvAlgorithms(NamedTuple):
    """Keys of `ALGORITHMS` for the three computations of a convolution.

    Attributes:
      value: computes the value.
      input_grad: its transpose computes the gradient of the input.
      kernel_grad: its transpose computes the gradient of the kernel.
    """

    value: str
    input_grad: str
    kernel_grad: str


NATIVE = ConvAlgorithms("xla_conv", "xla_conv", "xla_conv")
# Approximate number of output locations that one step of `rows` computes, so that its operands stay in the caches.
LOCATIONS_PER_STEP = 1024


def convolve(x: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """Convolve [B, H, W, in] with a kernel [kh, kw, in / groups, out] → [B, H', W', out]."""
    spec = explicit_padding(x.shape, kernel.shape, spec)
    algorithms = select_algorithms(x.shape, kernel.shape, spec, x.dtype)
    if algorithms == NATIVE:
        return xla_conv(x, kernel, spec)
    return _convolve((algorithms, spec, x.shape, kernel.shape), x, kernel)


def linear_in_kernel(x: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """Same as `convolve`, in a form that `jax.linear_transpose` accepts with respect to the kernel."""
    spec = explicit_padding(x.shape, kernel.shape, spec)
    return ALGORITHMS[select_algorithms(x.shape, kernel.shape, spec, x.dtype).kernel_grad](x, kernel, spec)


def explicit_padding(x: Shape, kernel: Shape, spec: ConvSpec) -> ConvSpec:
    """Return `spec` with numbers instead of "SAME", for an input and a kernel of these shapes.

    "SAME" gives ⌈side / stride⌉ locations; of an odd number of zeros, one more is at the end.
    """
    if spec.padding != "SAME":
        return spec
    sides = [dilation * (size - 1) + 1 for dilation, size in zip(spec.dilation, kernel, strict=False)]
    return spec._replace(padding=tuple(jax.lax.padtype_to_pads(x[1:3], sides, spec.strides, spec.padding)))


def select_algorithms(x: Shape, kernel: Shape, spec: ConvSpec, dtype) -> ConvAlgorithms:
    """Return the algorithms for an input and a kernel of these shapes and this dtype."""
    max_side = max(_output_size(x, kernel, spec))
    if jax.default_backend() != "cpu" or min(_output_size(x, kernel, spec)) < 1:
        return NATIVE
    if spec.groups > 1:
        depthwise = spec.groups == x[-1] == kernel[-1]
        return ConvAlgorithms("depthwise_shift", "depthwise_shift", "depthwise_shift") if depthwise else NATIVE
    if kernel[:2] == (1, 1):
        return ConvAlgorithms("im2col", "im2col", "columns")
    strided = max(spec.strides) > 1
    many_channels = min(x[-1], kernel[-1]) >= 64
    if dtype == jnp.bfloat16 and max_side <= 32 and many_channels:
        value = "wide_matmul" if max_side > 16 and not strided else "rows"
        return ConvAlgorithms(value, "im2col" if strided else "rows", "columns" if max_side <= 4 else "xla_conv")
    if max_side <= 4:
        return ConvAlgorithms("im2col", "im2col", "columns")
    return ConvAlgorithms("xla_conv", "im2col" if strided and max_side <= 8 else "xla_conv", "xla_conv")


@functools.cache
def inference_options() -> dict[str, str]:
    """Return XLA compiler options for programs without gradients of convolutions.

    On a CPU, jaxlib 0.10 delegates float32 convolutions to YNNPACK, which is faster for gradients but slower for a
    network's forward pass: Eigen's are 1.34 times as fast in VGG-16 (64×64), 1.28 in DenseNet-121 (64×64), 1.8 in
    Inception v3 (128×128), 1.35 in ResNet-8 (28×28), 1.04 to 1.09 in ResNet-50.
    """
    options = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:  # this version of the compiler has no such option
        return {}
    return options


def xla_conv(x: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """XLA's convolution."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        spec.strides,
        spec.padding,
        rhs_dilation=spec.dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=spec.groups,
        precision=spec.precision,
    )


def im2col(x: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """Convolution as a product of all patches, [B, H', W', kh · kw · in], with the kernel as a matrix."""
    patches = jnp.concatenate(list(_shifted_inputs(_pad(x, spec), kernel.shape, spec)), -1)
    return _matmul(patches, kernel.reshape(-1, kernel.shape[-1]), spec).astype(x.dtype)


def columns(x: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """`im2col` with patches as columns, [kh · kw · in, B · H' · W'], whose transpose in the kernel is a plain product.

    XLA's matrix library has no fast kernel for products that contract the rows of both operands.
    """
    # The barriers keep XLA from recomputing x inside the transposition, with strided memory access, and from merging
    # the transposition back into the product.
    x = jax.lax.optimization_barrier(x)
    patches = jnp.concatenate(list(_shifted_inputs(_pad(x, spec), kernel.shape, spec)), -1)
    patch_columns = jax.lax.optimization_barrier(patches.reshape(-1, patches.shape[-1]).T)
    y = _matmul(patch_columns, kernel.reshape(-1, kernel.shape[-1]), spec, axis=0)
    return y.reshape(*patches.shape[:-1], -1).astype(x.dtype)


def rows(x: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """Convolution as a sum over kernel rows of products with that row's patches, a few images at a time."""
    row_matrices = kernel.reshape(kernel.shape[0], -1, kernel.shape[-1])

    def multiply(patches: jax.Array, input_rows: list[slice]) -> jax.Array:
        pairs = zip(input_rows, row_matrices, strict=True)
        return _sum(_matmul(patches[:, row_slice], matrix, spec) for row_slice, matrix in pairs)

    return _map_row_patches(multiply, x, kernel, spec, LOCATIONS_PER_STEP)


def wide_matmul(x: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """Convolution as one product of row patches with all kernel rows side by side, summed over the matching parts."""
    wide_kernel = jnp.moveaxis(kernel.reshape(kernel.shape[0], -1, kernel.shape[-1]), 0, 1)

    def multiply(patches: jax.Array, input_rows: list[slice]) -> jax.Array:
        y = _matmul(patches, wide_kernel.reshape(patches.shape[-1], -1), spec)
        y = y.reshape(*patches.shape[:3], kernel.shape[0], -1)
        return _sum(y[:, row_slice, :, i] for i, row_slice in enumerate(input_rows))

    return _map_row_patches(multiply, x, kernel, spec, 4 * LOCATIONS_PER_STEP)


def depthwise_shift(x: jax.Array, kernel: jax.Array, spec: ConvSpec) -> jax.Array:
    """Depthwise convolution as a sum over kernel taps of shifted inputs times one weight per channel."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    taps = kernel.reshape(-1, kernel.shape[-1]).astype(dtype)
    shifted = _shifted_inputs(_pad(x, spec).astype(dtype), kernel.shape, spec)
    return _sum(inputs * tap for inputs, tap in zip(shifted, taps, strict=True)).astype(x.dtype)


ALGORITHMS = {
    function.__name__: function for function in (xla_conv, im2col, columns, rows, wide_matmul, depthwise_shift)
}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(static, x: jax.Array, kernel: jax.Array) -> jax.Array:
    algorithms, spec, *_ = static
    return ALGORITHMS[algorithms.value](x, kernel, spec)


def _forward(static, x, kernel):
    # An input that needs no gradient is not perturbed: then its gradient is not computed, and the other not saved.
    residuals = x.value if kernel.perturbed else None, kernel.value if x.perturbed else None
    return _convolve(static, x.value, kernel.value), residuals


def _backward(static, residuals, dy: jax.Array):
    algorithms, spec, *shapes = static
    x, kernel = residuals
    x_like, kernel_like = (jax.ShapeDtypeStruct(shape, dy.dtype) for shape in shapes)
    dx = dkernel = None
    if kernel is not None and algorithms.input_grad == "rows":
        # At stride 1 the gradient is itself a convolution, with the kernel flipped.
        sides = zip(spec.dilation, kernel.shape, spec.padding, strict=False)
        padding = tuple((d * (k - 1) - before, d * (k - 1) - after) for d, k, (before, after) in sides)
        dx = rows(dy, kernel[::-1, ::-1].swapaxes(2, 3), spec._replace(padding=padding))
    elif kernel is not None:
        (dx,) = jax.linear_transpose(lambda x: ALGORITHMS[algorithms.input_grad](x, kernel, spec), x_like)(dy)
    if x is not None:
        (dkernel,) = jax.linear_transpose(lambda k: ALGORITHMS[algorithms.kernel_grad](x, k, spec), kernel_like)(dy)
    return dx, dkernel


_convolve.defvjp(_forward, _backward, symbolic_zeros=True)


def _pad(x: jax.Array, spec: ConvSpec) -> jax.Array:
    return jax.lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((*p, 0) for p in spec.padding), (0, 0, 0)))


def _shifted_inputs(x: jax.Array, kernel: Shape, spec: ConvSpec) -> Iterator[jax.Array]:
    """Yield, for each kernel tap row by row, the values of a padded input that it multiplies: [B, H', W', in]."""
    height, width = _output_size(x.shape, kernel, spec._replace(padding=NO_PADDING))
    stride_h, stride_w = spec.strides
    dilation_h, dilation_w = spec.dilation
    for i in range(0, kernel[0] * dilation_h, dilation_h):
        for j in range(0, kernel[1] * dilation_w, dilation_w):
            yield x[:, i : i + (height - 1) * stride_h + 1 : stride_h, j : j + (width - 1) * stride_w + 1 : stride_w]


def _map_row_patches(
    multiply: Callable[[jax.Array, list[slice]], jax.Array],
    x: jax.Array,
    kernel: jax.Array,
    spec: ConvSpec,
    locations: int,
) -> jax.Array:
    """Call `multiply(patches, input_rows)` for a few images at a time, about `locations` output locations per call.

    `patches` [b, H, W', kw · in] are the patches of one kernel row at every row of the input; `input_rows` are, for
    each kernel row, the rows of the input that it multiplies.
    """
    x = _pad(x, spec)
    stride_h, stride_w = spec.strides
    height, width = _output_size(x.shape, kernel.shape, spec._replace(padding=NO_PADDING))
    starts = range(0, kernel.shape[0] * spec.dilation[0], spec.dilation[0])
    input_rows = [slice(start, start + (height - 1) * stride_h + 1, stride_h) for start in starts]

    def convolve_images(x: jax.Array) -> jax.Array:
        shifted = _shifted_inputs(x, (1, *kernel.shape[1:]), spec._replace(strides=(1, stride_w)))
        return multiply(jnp.concatenate(list(shifted), -1), input_rows).astype(x.dtype)

    num_images = max(1, locations // (height * width))
    if x.shape[0] % num_images or x.shape[0] == num_images:
        return convolve_images(x)
    y = jax.lax.map(convolve_images, x.reshape(-1, num_images, *x.shape[1:]))
    return y.reshape(-1, *y.shape[2:])


def _output_size(x: Shape, kernel: Shape, spec: ConvSpec) -> list[int]:
    """Return H' and W' of the result."""
    axes = zip(x[1:3], kernel[:2], spec.strides, spec.padding, spec.dilation, strict=True)
    return [(side + sum(pads) - dilation * (size - 1) - 1) // stride + 1 for side, size, stride, pads, dilation in axes]


def _sum(terms: Iterator[Any]) -> Any:
    return sum(terms)


def _matmul(a: jax.Array, b: jax.Array, spec: ConvSpec, axis: int = -1) -> jax.Array:
    # Sums are accumulated in at least float32, as in XLA's convolutions.
    dtype = jnp.promote_types(a.dtype, jnp.float32)
    contracted = ((axis % a.ndim,), (0,)), ((), ())
    return jax.lax.dot_general(a, b, contracted, precision=spec.precision, preferred_element_type=dtype)
