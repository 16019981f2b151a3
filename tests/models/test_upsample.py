"""Transposed convolutions and interpolation beside brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.small import scattered
from tests.models.zoo import compiled
from tljax.models import params as params_lib
from tljax.models.partial_training import TrainableChannels
from tljax.models.upsample import ConvTranspose, bilinear, nearest_upsample, pad_or_crop


@pytest.mark.parametrize(("size", "stride"), [(2, 2), (4, 2), (6, 2), (8, 4), (2, 1)])
def test_a_transposed_convolution_adds_a_copy_of_its_kernel_for_each_place(size, stride):
    rng = np.random.default_rng(0)
    x, kernel, bias, dy = rng.normal(size=(2, 3, 2, 4)), rng.normal(size=(size, size, 4, 5)), rng.normal(size=5), None
    layer = ConvTranspose(4, 5, size, stride=stride, rngs=None)
    graphdef = params_lib.flatten_model(layer).graphdef

    @compiled
    def run(x, kernel, bias, dy):
        def value(x, kernel):
            return params_lib.merge(graphdef, {"kernel": kernel, "bias": bias})(x)

        y, back = jax.vjp(value, x, kernel)
        return y, *back(dy)

    expected = scattered(x, kernel, stride)
    dy = rng.normal(size=expected.shape)
    y, dx, dkernel = run(*(jnp.asarray(a, jnp.float32) for a in (x, kernel, bias, dy)))
    np.testing.assert_allclose(y, expected + bias, atol=1e-4)
    # The map is linear in both: its gradients are those of sum(y · dy).
    other = rng.normal(size=kernel.shape)
    assert np.sum(np.asarray(dkernel) * other) == pytest.approx(np.sum(scattered(x, other, stride) * dy), rel=1e-4)
    other = rng.normal(size=x.shape)
    assert np.sum(np.asarray(dx) * other) == pytest.approx(np.sum(scattered(other, kernel, stride) * dy), rel=1e-4)


def test_single_channels_of_a_transposed_convolution_learn_alone():
    rng = np.random.default_rng(0)
    x, kernel = jnp.asarray(rng.normal(size=(1, 2, 2, 3))), jnp.asarray(rng.normal(size=(4, 4, 3, 5)))
    index = jnp.array([1, 3])
    graphdef = params_lib.flatten_model(ConvTranspose(3, 5, 4, bias=False, rngs=None)).graphdef

    def loss(part, kernel, single):
        layer = params_lib.merge(graphdef, {"kernel": kernel})
        if single:
            layer.train_channels(TrainableChannels(part, index))
        return jnp.sum(jnp.sin(layer(x)))

    part = kernel[..., index]
    alone, none = compiled(jax.grad(lambda p, k: loss(p, k, True), (0, 1)))(part, kernel)
    whole = compiled(jax.grad(lambda k: loss(None, k, False)))(kernel)
    np.testing.assert_allclose(alone, whole[..., index], atol=1e-5)
    assert not none.any()


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize(("height", "width", "size"), [(3, 5, 9), (1, 12, 12)])
def test_interpolation_is_numpys(height, width, size, corners):
    x = np.random.default_rng(height * width).normal(size=(1, height, width, 1)).astype(np.float32)
    y = np.asarray(bilinear(jnp.asarray(x), (size, 2 * size), corners))[0, :, :, 0]

    def places(inputs, outputs):
        if corners:
            return np.linspace(0, inputs - 1, outputs)
        return (np.arange(outputs) + 0.5) * inputs / outputs - 0.5

    rows = [np.interp(places(height, size), np.arange(height), column) for column in x[0, :, :, 0].T]
    expected = [np.interp(places(width, 2 * size), np.arange(width), row) for row in np.transpose(rows)]
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_a_map_is_repeated_padded_and_cropped():
    x = jnp.arange(1, 5).reshape(1, 2, 2, 1)
    assert nearest_upsample(x)[0, :, :, 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
    # What is odd goes to the end, or is taken from there.
    assert pad_or_crop(x, (3, 4))[0, :, :, 0].tolist() == [[0, 1, 2, 0], [0, 3, 4, 0], [0, 0, 0, 0]]
    assert pad_or_crop(nearest_upsample(x), (3, 1))[0, :, :, 0].tolist() == [[1], [1], [3]]
