"""Layers that train single channels: same values, same gradients of these channels, and no work for the others."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tljax import models
from tljax.models import layers
from tljax.models import params as params_lib
from tljax.models.backbones import resnet, vgg
from tljax.strategies import neurons

# Compilation takes most of the time of these tests.
FAST_COMPILE = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
INDEX = {"kernel": np.array([0, 3, 4], np.int32)}
LAYERS = {
    "plain": (layers.Conv, (3, 6), {}, (2, 7, 6, 3)),
    "half": (layers.Conv, (3, 6), {"dtype": jnp.bfloat16}, (2, 7, 6, 3)),
    "strided": (layers.Conv, (3, 6, (3, 2)), {"stride": 2, "padding": (2, 1)}, (2, 7, 6, 3)),
    "dilated": (layers.Conv, (3, 6), {"dilation": 2, "bias": False}, (2, 7, 6, 3)),
    "pointwise": (layers.Conv, (3, 6, 1), {"stride": 2}, (2, 7, 6, 3)),
    "grouped": (layers.Conv, (4, 6), {"groups": 2}, (2, 7, 6, 4)),
    "depthwise": (layers.Conv, (6, 6), {"groups": 6}, (2, 7, 6, 6)),
    "dense": (layers.Linear, (5, 6), {}, (4, 5)),
    "dense at locations": (layers.Linear, (5, 6), {"dtype": jnp.bfloat16}, (2, 3, 2, 5)),
}


def normal(seed, shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("kind", LAYERS)
def test_train_channels_value_and_gradients(kind):
    cls, sizes, options, shape = LAYERS[kind]
    graphdef, params, _ = params_lib.flatten_model(nnx.eval_shape(lambda: cls(*sizes, **options, rngs=nnx.Rngs(0))))
    params = {path: normal(i, v.shape) for i, (path, v) in enumerate(params.items())}
    slices = neurons.gather_channels(params, INDEX)

    def run_whole(params, x):
        return params_lib.merge(graphdef, params)(x)

    def run_channels(slices, params, x):
        model = params_lib.merge(graphdef, neurons.scatter_channels(params, slices, INDEX))
        neurons.attach_channels(model, slices, INDEX)
        return model(x)

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def run_both(params, slices, x, dy):
        y, vjp = jax.vjp(run_whole, params, x)
        # The kernel's previous values at the trained channels must have no effect.
        stale = params | {"kernel": params["kernel"].at[..., INDEX["kernel"]].set(1e3)}
        y_channels, vjp_channels = jax.vjp(run_channels, slices, stale, x)
        return (y, *vjp(dy)), (y_channels, *vjp_channels(dy))

    x = normal(7, shape)
    dy = normal(8, jax.eval_shape(run_whole, params, x).shape).astype(options.get("dtype", jnp.float32))
    whole, channels = jax.device_get(run_both(params, slices, x, dy))
    y, dparams, dx = whole
    y_channels, dslices, dparams_channels, dx_channels = channels
    np.testing.assert_array_equal(y_channels, y)
    np.testing.assert_array_equal(dx_channels, dx)
    expected = dparams["kernel"][..., INDEX["kernel"]]
    # bfloat16 has eight bits of precision.
    tolerance = 1e-6 if "dtype" not in options else 2**-7
    np.testing.assert_allclose(dslices["kernel"], expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())
    assert (dparams_channels["kernel"][..., INDEX["kernel"]] == 0).all()
    if "groups" not in options:
        assert (dparams_channels["kernel"] == 0).all()
    if "bias" in dparams:
        np.testing.assert_array_equal(dparams_channels["bias"], dparams["bias"])


def make_loss_fn(model, index):
    """Return (slices, variables, images) → (loss, batch_stats) for a model that trains the channels at `index`."""
    graphdef = params_lib.flatten_model(model).graphdef

    def loss_fn(slices, variables, images):
        model = params_lib.merge(graphdef, neurons.scatter_channels(variables, slices, index))
        neurons.attach_channels(model, slices, index)
        logits = model(images, train=True)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(len(images))).mean()
        return loss, params_lib.batch_stats(model)

    return loss_fn


def test_kernel_gradient_flops_scale_with_channels():
    side = 8
    width = 40
    batch = 3
    model = models.create_model(vgg.Variant(((width,) * 4,)), num_classes=3, image_size=side, rngs=nnx.Rngs(0))
    params = params_lib.flatten_model(model).params
    layer_params = neurons.find_layers(params, ("(stem|stage1)/.*",))
    assert len(layer_params) == 4
    images = np.zeros((batch, side, side, 3), np.float32)
    flops = {}
    for fraction in (0.1, 1.0):
        channels = {layer: np.arange(round(fraction * width), dtype=np.int32) for layer in layer_params}
        index = neurons.channel_index(channels, layer_params)
        grad_fn = jax.jit(jax.grad(make_loss_fn(model, index), has_aux=True))
        flops[fraction] = grad_fn.lower(neurons.gather_channels(params, index), params, images).cost_analysis()["flops"]
    # The taps of a padded 3×3 kernel read 3 · side - 2 pixels along each axis in total.
    first_layer, other_layer = (2 * batch * (3 * side - 2) ** 2 * inputs * width for inputs in (3, width))
    forward = first_layer + 3 * other_layer
    kernel_gradients = first_layer + 3 * other_layer
    input_gradients = 3 * other_layer
    # The remaining operations are ReLU, pooling, the head and the loss.
    for fraction, counted in flops.items():
        assert 1 < counted / (forward + input_gradients + fraction * kernel_gradients) < 1.03


@pytest.mark.parametrize("remat", [False, True])
def test_train_channels_in_network_with_batch_norm(remat):
    variant = resnet.Variant((1,), (4,), bottleneck=False, small=True)
    model = models.create_model(variant, num_classes=3, image_size=8, remat=remat, rngs=nnx.Rngs(0))
    _, params, stats = params_lib.flatten_model(model)
    variables = params | stats
    images = normal(0, (3, 8, 8, 3))
    layer_params = neurons.find_layers(params, ("(stem|stage1)/.*",))
    index = neurons.channel_index({layer: np.array([1, 3], np.int32) for layer in layer_params}, layer_params)
    assert {path.split("/")[-1] for path in index} == {"kernel", "scale", "bias"}

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def run_both(slices, params, variables, images):
        channels = jax.grad(make_loss_fn(model, index), has_aux=True)(slices, variables, images)
        loss_fn = make_loss_fn(model, {})
        return channels, jax.grad(lambda p: loss_fn({}, variables | p, images), has_aux=True)(params)

    channels, whole = jax.device_get(run_both(neurons.gather_channels(params, index), params, variables, images))
    dslices, new_stats = channels
    dparams, expected_stats = whole
    assert new_stats.keys() == stats.keys()
    for path, value in expected_stats.items():
        np.testing.assert_allclose(new_stats[path], value, rtol=1e-5, atol=1e-6)
    assert dslices.keys() == index.keys()
    for path, channel_index in index.items():
        expected = dparams[path][..., channel_index]
        assert np.abs(expected).max() > 0
        scale = np.abs(dparams[path]).max()
        np.testing.assert_allclose(dslices[path], expected, rtol=1e-4, atol=1e-5 * scale)
