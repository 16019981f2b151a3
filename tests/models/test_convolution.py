"""Convolution algorithms match XLA's convolution in value and gradients; max pooling matches a reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from tljax.models import layers
from tljax.ops import convolution
from tljax.ops.convolution import ConvAlgorithms, ConvSpec, convolve, linear_in_kernel, select_algorithms, xla_conv

NATIVE = ("xla_conv",) * 3
SAME = ((1, 1), (1, 1))
# Compilation takes most of the time of these tests.
FAST_COMPILE = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
UNGROUPED = [
    ("im2col", "im2col", "columns"),
    ("rows", "rows", "columns"),
    ("rows", "im2col", "xla_conv"),
    ("xla_conv", "im2col", "xla_conv"),
]


def normal(seed, shape, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def assert_close(actual, expected, tolerance=1e-5):
    actual = np.asarray(actual, np.float64)
    expected = np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, atol=tolerance * max(1.0, np.abs(expected).max(initial=0)), rtol=0)


def value_and_gradients(function, *arguments):
    """Return the value, and the gradients of a weighted sum of it."""
    y, vjp = jax.vjp(function, *arguments)
    return y, *vjp(normal(9, y.shape, y.dtype))


@st.composite
def cases(draw):
    """Draw a spec, the shapes of input and kernel, and algorithms."""
    size = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    padding = tuple((draw(st.integers(0, 3)), draw(st.integers(0, 3))) for _ in size)
    min_sides = [max(1, d * (k - 1) + 1 - sum(p)) for d, k, p in zip(dilation, size, padding, strict=True)]
    sides = tuple(side + draw(st.integers(0, 4)) for side in min_sides)
    groups = draw(st.sampled_from([1, 1, 1, 3]))
    channels = (3, draw(st.sampled_from([3, 6]))) if groups > 1 else (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    strides = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    spec = ConvSpec(strides, padding, dilation, groups)
    if groups == 1:
        algorithms = draw(st.sampled_from(UNGROUPED))
    else:
        algorithms = ("depthwise_shift",) * 3 if channels[1] == 3 else NATIVE
    if "rows" in algorithms[1] and max(strides) > 1:
        algorithms = (algorithms[0], "im2col", algorithms[2])
    x_shape = (draw(st.integers(1, 4)), *sides, channels[0])
    return spec, x_shape, (*size, channels[0] // groups, channels[1]), ConvAlgorithms(*algorithms)


def compare_with_xla(conv, spec, x, kernel):
    """Return (actual, expected) pairs of values and gradients of `conv` and XLA's convolution, from one program."""

    def both(x, k):
        return value_and_gradients(conv, x, k), value_and_gradients(lambda x, k: xla_conv(x, k, spec), x, k)

    return zip(*jax.jit(both, compiler_options=FAST_COMPILE)(x, kernel), strict=True)


@settings(max_examples=12, deadline=None)
@given(case=cases(), dtype=st.sampled_from([np.float32, np.float32, jnp.bfloat16]))
def test_algorithms_match_xla(case, dtype):
    spec, x_shape, kernel_shape, algorithms = case
    x = normal(0, x_shape, dtype)
    kernel = normal(1, kernel_shape, dtype)
    static = algorithms, spec, x_shape, kernel_shape
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "LOCATIONS_PER_STEP", 6)  # so that `rows` runs in several steps
        for actual, expected in compare_with_xla(lambda x, k: convolution._convolve(static, x, k), spec, x, kernel):
            assert actual.dtype == expected.dtype
            assert_close(actual, expected, 1e-5 if dtype == np.float32 else 2**-6)


@pytest.mark.parametrize(
    ("side", "size", "stride", "dilation", "expected"),
    [(4, 3, 2, 1, (0, 1)), (5, 3, 2, 1, (1, 1)), (4, 5, 2, 1, (1, 2)), (7, 5, 1, 1, (2, 2)), (6, 3, 2, 2, (1, 2))],
)
def test_same_padding_by_hand(side, size, stride, dilation, expected):
    spec = ConvSpec((stride, 1), "SAME", (dilation, 1))
    assert convolution.explicit_padding((1, side, 9, 1), (size, 1, 1, 1), spec).padding == (expected, (0, 0))
    # Numbers stay as they are.
    assert convolution.explicit_padding((1, side, 9, 1), (size, 1, 1, 1), ConvSpec(padding=SAME)).padding == SAME


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(("side", "size", "stride"), [((4, 5), 3, 2), ((10, 7), 5, 2), ((3, 2), 5, 1)])
def test_same_padding_matches_xla(groups, side, size, stride):
    spec = ConvSpec((stride, stride), "SAME", groups=groups)
    x = normal(0, (2, *side, 4))
    kernel = normal(1, (size, size, 4 // groups, 4))
    # XLA pads by itself: `xla_conv` passes the string on.
    for actual, expected in compare_with_xla(lambda x, k: convolve(x, k, spec), spec, x, kernel):
        assert_close(actual, expected)
    layer = layers.Conv(4, 4, size, stride=stride, padding="same", groups=groups, rngs=nnx.Rngs(0))
    layer.kernel.set_value(kernel)
    assert_close(layer(x), xla_conv(x, kernel, spec))
    if groups == 1:
        assert_close(layer.apply_kernel(x, kernel[..., :2]), xla_conv(x, kernel[..., :2], spec))


SHAPES = {
    "pointwise": ((2, 5, 5, 3), (1, 1, 3, 4), ConvSpec((2, 2))),
    "small": ((2, 4, 4, 3), (3, 3, 3, 4), ConvSpec((1, 1), SAME)),
    "strided": ((2, 9, 9, 3), (3, 3, 3, 4), ConvSpec((2, 2), SAME)),
    "large": ((1, 9, 9, 3), (3, 3, 3, 4), ConvSpec((1, 1), SAME)),
    "depthwise": ((2, 5, 5, 4), (3, 3, 1, 4), ConvSpec((1, 1), SAME, groups=4)),
    "grouped": ((2, 5, 5, 4), (3, 3, 2, 4), ConvSpec((1, 1), SAME, groups=2)),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_convolve_supports_jax_transforms_and_float64(kind):
    x_shape, kernel_shape, spec = SHAPES[kind]
    x = normal(0, x_shape)
    kernels = normal(1, (2, *kernel_shape))

    def transformed(conv):
        remat_conv = jax.checkpoint(lambda x, k: conv(x, k, spec))
        batched = jax.vmap(lambda k: value_and_gradients(remat_conv, x, k))(kernels)
        y = xla_conv(x, kernels[0], spec)
        linear = linear_in_kernel if conv is convolve else xla_conv
        return *batched, *jax.linear_transpose(lambda k: linear(x, k, spec), kernels[0])(jnp.cos(y))

    results = jax.jit(lambda: (transformed(convolve), transformed(xla_conv)), compiler_options=FAST_COMPILE)()
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected)
    with jax.enable_x64(True):
        x = normal(0, x_shape, np.float64)
        kernel = normal(1, kernel_shape, np.float64)
        for actual, expected in compare_with_xla(lambda x, k: convolve(x, k, spec), spec, x, kernel):
            assert actual.dtype == np.float64
            assert_close(actual, expected, 1e-13)


def test_select_algorithms(monkeypatch):
    small = SHAPES["small"]
    large = ((8, 56, 56, 64), (3, 3, 64, 64), ConvSpec((1, 1), SAME))
    assert select_algorithms(*small, np.float32) == ("im2col", "im2col", "columns")
    assert select_algorithms(*large, np.float32) == NATIVE
    assert select_algorithms((8, 16, 16, 64), *large[1:], jnp.bfloat16).value == "rows"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert all(select_algorithms(*shapes, np.float32) == NATIVE for shapes in SHAPES.values())


def test_convolve_computes_only_required_gradients():
    x_shape, kernel_shape, spec = SHAPES["small"]
    x = normal(0, x_shape)
    kernel = normal(1, kernel_shape)

    def loss(x, k):
        return convolve(x, k, spec).sum()

    for argnums, num_gradients in ((0, 1), (1, 1), ((0, 1), 2)):
        # One product for the value, which the jaxpr contains although neither loss nor gradients need it.
        text = str(jax.make_jaxpr(jax.grad(loss, argnums))(x, kernel))
        assert text.count("dot_general") == 1 + num_gradients


@pytest.mark.parametrize(("size", "stride", "padding", "ceil"), [(3, 2, 1, False), (2, 2, 0, True), (3, 1, 1, False)])
def test_max_pool_gradient_goes_to_first_maximum(size, stride, padding, ceil):
    x = jnp.round(normal(3, (2, 7, 6, 3)))

    def reference(x, dy):
        pads = [(padding, size)] * 2  # more than needed at the end; pixels outside all windows do not matter
        x = np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-np.inf)
        y = np.zeros(dy.shape)
        dx = np.zeros(x.shape)
        for b, i, j, c in np.ndindex(dy.shape):
            window = x[b, i * stride : i * stride + size, j * stride : j * stride + size, c]
            row, column = np.unravel_index(window.argmax(), window.shape)
            y[b, i, j, c] = window[row, column]
            dx[b, i * stride + row, j * stride + column, c] += dy[b, i, j, c]
        return y, dx[:, padding : padding + 7, padding : padding + 6]

    y, dx = jax.jit(lambda x: value_and_gradients(lambda x: layers.max_pool(x, size, stride, padding, ceil), x))(x)
    y_expected, dx_expected = reference(np.asarray(x), np.asarray(normal(9, y.shape)))
    np.testing.assert_array_equal(y, y_expected)
    np.testing.assert_allclose(dx, dx_expected, atol=1e-6)
