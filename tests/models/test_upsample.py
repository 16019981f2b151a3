"""Transposed convolution and interpolation compared with reference loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.small import conv_transpose_reference
from tests.models.zoo import fast_jit
from tljax.models import params as params_lib
from tljax.models.partial_training import TrainableChannels
from tljax.models.upsample import ConvTranspose, nearest_upsample, pad_or_crop, resize_bilinear


@pytest.mark.parametrize(("size", "stride"), [(2, 2), (4, 2), (6, 2), (8, 4), (2, 1)])
def test_conv_transpose_matches_reference(size, stride):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 2, 4))
    kernel = rng.normal(size=(size, size, 4, 5))
    bias = rng.normal(size=5)
    layer = ConvTranspose(4, 5, size, stride=stride, rngs=None)
    graphdef = params_lib.flatten_model(layer).graphdef

    @fast_jit
    def run(x, kernel, bias, dy):
        def apply(x, kernel):
            return params_lib.merge(graphdef, {"kernel": kernel, "bias": bias})(x)

        y, vjp = jax.vjp(apply, x, kernel)
        return y, *vjp(dy)

    expected = conv_transpose_reference(x, kernel, stride)
    dy = rng.normal(size=expected.shape)
    y, dx, dkernel = run(*(jnp.asarray(a, jnp.float32) for a in (x, kernel, bias, dy)))
    np.testing.assert_allclose(y, expected + bias, atol=1e-4)
    # The output is linear in kernel and input, so <gradient, v> = <output for v, dy> for any v.
    v = rng.normal(size=kernel.shape)
    expected = np.sum(conv_transpose_reference(x, v, stride) * dy)
    assert np.sum(np.asarray(dkernel) * v) == pytest.approx(expected, rel=1e-4)
    v = rng.normal(size=x.shape)
    expected = np.sum(conv_transpose_reference(v, kernel, stride) * dy)
    assert np.sum(np.asarray(dx) * v) == pytest.approx(expected, rel=1e-4)


def test_conv_transpose_trains_single_channels():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(1, 2, 2, 3)))
    kernel = jnp.asarray(rng.normal(size=(4, 4, 3, 5)))
    index = jnp.array([1, 3])
    graphdef = params_lib.flatten_model(ConvTranspose(3, 5, 4, bias=False, rngs=None)).graphdef

    def loss_fn(kernel, channel_kernel=None):
        layer = params_lib.merge(graphdef, {"kernel": kernel})
        if channel_kernel is not None:
            layer.train_channels(TrainableChannels(channel_kernel, index))
        return jnp.sum(jnp.sin(layer(x)))

    dkernel, dchannels = fast_jit(jax.grad(loss_fn, (0, 1)))(kernel, kernel[..., index])
    expected = fast_jit(jax.grad(loss_fn))(kernel)
    np.testing.assert_allclose(dchannels, expected[..., index], atol=1e-5)
    assert not dkernel.any()


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize(("height", "width", "size"), [(3, 5, 9), (1, 12, 12)])
def test_bilinear_matches_numpy(height, width, size, corners):
    x = np.random.default_rng(height * width).normal(size=(1, height, width, 1)).astype(np.float32)
    y = np.asarray(resize_bilinear(jnp.asarray(x), (size, 2 * size), corners))[0, :, :, 0]

    def positions(inputs, outputs):
        if corners:
            return np.linspace(0, inputs - 1, outputs)
        return (np.arange(outputs) + 0.5) * inputs / outputs - 0.5

    rows = [np.interp(positions(height, size), np.arange(height), column) for column in x[0, :, :, 0].T]
    expected = [np.interp(positions(width, 2 * size), np.arange(width), row) for row in np.transpose(rows)]
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_nearest_upsample_and_pad_or_crop():
    x = jnp.arange(1, 5).reshape(1, 2, 2, 1)
    assert nearest_upsample(x)[0, :, :, 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
    # An odd pixel is added or cut at the end.
    assert pad_or_crop(x, (3, 4))[0, :, :, 0].tolist() == [[0, 1, 2, 0], [0, 3, 4, 0], [0, 0, 0, 0]]
    assert pad_or_crop(nearest_upsample(x), (3, 1))[0, :, :, 0].tolist() == [[1], [1], [3]]
