"""Every form of a convolution is XLA's in value and both gradients, mapped and transposed; so is max pooling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tljax.models import layers
from tljax.ops import convolution
from tljax.ops.convolution import ConvAlgorithms, ConvSpec, convolve, linear_in_kernel, select_algorithms, xla_conv

NATIVE = ("xla_conv",) * 3
SAME = ((1, 1), (1, 1))
# Compiling is most of the work.
QUICK = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
ONE_GROUP = [
    ("im2col", "im2col", "columns"),
    ("rows", "rows", "columns"),
    ("rows", "im2col", "xla_conv"),
    ("xla_conv", "im2col", "xla_conv"),
]


def normal(seed, shape, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def close(found, expected, tolerance=1e-5):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=tolerance * max(1.0, np.abs(expected).max(initial=0)), rtol=0)


def pulled(function, *arguments):
    """The value and the gradients of a weighted sum of it."""
    y, back = jax.vjp(function, *arguments)
    return y, *back(normal(9, y.shape, y.dtype))


@st.composite
def cases(draw):
    """Window, shapes of map and kernel, and which forms."""
    size = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    padding = tuple((draw(st.integers(0, 3)), draw(st.integers(0, 3))) for _ in size)
    least = [max(1, d * (k - 1) + 1 - sum(p)) for d, k, p in zip(dilation, size, padding, strict=True)]
    sides = tuple(low + draw(st.integers(0, 4)) for low in least)
    groups = draw(st.sampled_from([1, 1, 1, 3]))
    channels = (3, draw(st.sampled_from([3, 6]))) if groups > 1 else (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    strides = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    window = ConvSpec(strides, padding, dilation, groups)
    forms = (
        draw(st.sampled_from(ONE_GROUP)) if groups == 1 else ("depthwise_shift",) * 3 if channels[1] == 3 else NATIVE
    )
    if "rows" in forms[1] and max(strides) > 1:
        forms = (forms[0], "im2col", forms[2])
    x = (draw(st.integers(1, 4)), *sides, channels[0])
    return window, x, (*size, channels[0] // groups, channels[1]), ConvAlgorithms(*forms)


def together(form, window, x, kernel):
    """Values and gradients of a form and of XLA's, as one program."""

    def both(x, k):
        return [pulled(f, x, k) for f in (form, lambda x, k: xla_conv(x, k, window))]

    return jax.jit(both, compiler_options=QUICK)(x, kernel)


@settings(max_examples=12, deadline=None)
@given(case=cases(), dtype=st.sampled_from([np.float32, np.float32, jnp.bfloat16]))
def test_every_form_is_xlas_convolution_in_value_and_both_gradients(case, dtype):
    window, x_shape, kernel_shape, forms = case
    x, kernel = normal(0, x_shape, dtype), normal(1, kernel_shape, dtype)
    static = forms, window, x_shape, kernel_shape
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "PLACES", 6)  # `rows` in more than one step
        for ours, theirs in zip(
            *together(lambda x, k: convolution._convolve(static, x, k), window, x, kernel), strict=True
        ):
            assert ours.dtype == theirs.dtype
            close(ours, theirs, 1e-5 if dtype == np.float32 else 2**-6)


SHAPES = {
    "pointwise": ((2, 5, 5, 3), (1, 1, 3, 4), ConvSpec((2, 2))),
    "small": ((2, 4, 4, 3), (3, 3, 3, 4), ConvSpec((1, 1), SAME)),
    "strided": ((2, 9, 9, 3), (3, 3, 3, 4), ConvSpec((2, 2), SAME)),
    "large": ((1, 9, 9, 3), (3, 3, 3, 4), ConvSpec((1, 1), SAME)),
    "depthwise": ((2, 5, 5, 4), (3, 3, 1, 4), ConvSpec((1, 1), SAME, groups=4)),
    "grouped": ((2, 5, 5, 4), (3, 3, 2, 4), ConvSpec((1, 1), SAME, groups=2)),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_what_the_rule_chooses_can_be_mapped_recomputed_transposed_and_has_float64(kind):
    x_shape, kernel_shape, window = SHAPES[kind]
    x, kernels = normal(0, x_shape), normal(1, (2, *kernel_shape))

    def of(function):
        over = jax.vmap(lambda k: pulled(jax.checkpoint(lambda x, k: function(x, k, window)), x, k))(kernels)
        y = xla_conv(x, kernels[0], window)
        linear = linear_in_kernel if function is convolve else xla_conv
        return *over, *jax.linear_transpose(lambda k: linear(x, k, window), kernels[0])(jnp.cos(y))

    ours, theirs = jax.jit(lambda: (of(convolve), of(xla_conv)), compiler_options=QUICK)()
    for found, expected in zip(ours, theirs, strict=True):
        close(found, expected)
    with jax.enable_x64(True):
        x, kernel = normal(0, x_shape, np.float64), normal(1, kernel_shape, np.float64)
        for found, expected in zip(*together(lambda x, k: convolve(x, k, window), window, x, kernel), strict=True):
            assert found.dtype == np.float64
            close(found, expected, 1e-13)


def test_the_rule_is_xlas_own_form_elsewhere_and_where_a_product_is_slower(monkeypatch):
    small, large = SHAPES["small"], ((8, 56, 56, 64), (3, 3, 64, 64), ConvSpec((1, 1), SAME))
    assert select_algorithms(*small, np.float32) == ("im2col", "im2col", "columns")
    assert select_algorithms(*large, np.float32) == NATIVE
    assert select_algorithms((8, 16, 16, 64), *large[1:], jnp.bfloat16).value == "rows"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert all(select_algorithms(*shapes, np.float32) == NATIVE for shapes in SHAPES.values())


def test_the_gradient_that_nobody_asks_for_is_not_computed():
    x_shape, kernel_shape, window = SHAPES["small"]
    x, kernel = normal(0, x_shape), normal(1, kernel_shape)

    def loss(x, k):
        return convolve(x, k, window).sum()

    for wanted, products in ((0, 1), (1, 1), ((0, 1), 2)):
        # The sum needs no value of the convolution, which the gradients do not need either.
        text = str(jax.make_jaxpr(jax.grad(loss, wanted))(x, kernel))
        assert text.count("dot_general") == 1 + products


@pytest.mark.parametrize(("size", "stride", "padding", "ceil"), [(3, 2, 1, False), (2, 2, 0, True), (3, 1, 1, False)])
def test_the_first_of_equal_maxima_has_the_gradient(size, stride, padding, ceil):
    x = jnp.round(normal(3, (2, 7, 6, 3)))

    def textbook(x, dy):
        pads = [(padding, size)] * 2  # generous at the end: what the windows of `y` do not see has no say
        x = np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-np.inf)
        y, dx = np.zeros(dy.shape), np.zeros(x.shape)
        for b, i, j, c in np.ndindex(dy.shape):
            window = x[b, i * stride : i * stride + size, j * stride : j * stride + size, c]
            row, column = np.unravel_index(window.argmax(), window.shape)
            y[b, i, j, c] = window[row, column]
            dx[b, i * stride + row, j * stride + column, c] += dy[b, i, j, c]
        return y, dx[:, padding : padding + 7, padding : padding + 6]

    y, dx = jax.jit(lambda x: pulled(lambda x: layers.max_pool(x, size, stride, padding, ceil), x))(x)
    y_expected, dx_expected = textbook(np.asarray(x), np.asarray(normal(9, y.shape)))
    np.testing.assert_array_equal(y, y_expected)
    np.testing.assert_allclose(dx, dx_expected, atol=1e-6)
