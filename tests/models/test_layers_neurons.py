"""A layer of which single neurons learn: the same values, the same gradient of their part, and no work for the rest."""

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

# Compiling is most of the work.
QUICK = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
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
    "dense at places": (layers.Linear, (5, 6), {"dtype": jnp.bfloat16}, (2, 3, 2, 5)),
}


def normal(seed, shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_value_is_the_layers_and_the_gradient_is_the_kernels_at_the_neurons(kind):
    cls, sizes, options, shape = LAYERS[kind]
    graphdef, params, _ = params_lib.flatten_model(nnx.eval_shape(lambda: cls(*sizes, **options, rngs=nnx.Rngs(0))))
    params = {path: normal(i, v.shape) for i, (path, v) in enumerate(params.items())}
    slices = neurons.gather(params, INDEX)

    def plain(leaves, x):
        return params_lib.merge(graphdef, leaves)(x)

    def single(slices, leaves, x):
        model = params_lib.merge(graphdef, neurons.scatter(leaves, slices, INDEX))
        neurons.attach_channels(model, slices, INDEX)
        return model(x)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def both(leaves, slices, x, target):
        y, back = jax.vjp(plain, leaves, x)
        # What the kernel held before where the neurons are does not matter.
        stale = leaves | {"kernel": leaves["kernel"].at[..., INDEX["kernel"]].set(1e3)}
        y_single, back_single = jax.vjp(single, slices, stale, x)
        return (y, *back(target)), (y_single, *back_single(target))

    x = normal(7, shape)
    target = normal(8, jax.eval_shape(plain, params, x).shape).astype(options.get("dtype", jnp.float32))
    (y, whole, dx), (y_single, part, others, dx_single) = jax.device_get(both(params, slices, x, target))
    np.testing.assert_array_equal(y_single, y)
    np.testing.assert_array_equal(dx_single, dx)
    expected = whole["kernel"][..., INDEX["kernel"]]
    # bfloat16 has eight bits.
    tolerance = 1e-6 if "dtype" not in options else 2**-7
    np.testing.assert_allclose(part["kernel"], expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())
    assert (others["kernel"][..., INDEX["kernel"]] == 0).all()
    if "groups" not in options:
        assert (others["kernel"] == 0).all()
    if "bias" in whole:
        np.testing.assert_array_equal(others["bias"], whole["bias"])


def loss_of(model, index):
    """(slices, leaves, images) → loss and moved statistics of a model of which the neurons at `index` learn."""
    graphdef = params_lib.flatten_model(model).graphdef

    def loss_fn(slices, leaves, images):
        model = params_lib.merge(graphdef, neurons.scatter(leaves, slices, index))
        neurons.attach_channels(model, slices, index)
        logits = model(images, train=True)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(len(images))).mean()
        return loss, params_lib.batch_stats(model)

    return loss_fn


def test_a_tenth_of_the_neurons_costs_a_tenth_of_the_kernels_gradients():
    side, width, batch = 8, 40, 3
    model = models.create_model(vgg.Variant(((width,) * 4,)), num_classes=3, image_size=side, rngs=nnx.Rngs(0))
    leaves = params_lib.flatten_model(model).params
    found = neurons.find_layers(leaves, ("(stem|stage1)/.*",))
    assert len(found) == 4
    images, flops = np.zeros((batch, side, side, 3), np.float32), {}
    for share in (0.1, 1.0):
        chosen = {layer: np.arange(round(share * width), dtype=np.int32) for layer in found}
        index = neurons.channel_index(chosen, found)
        step = jax.jit(jax.grad(loss_of(model, index), has_aux=True))
        flops[share] = step.lower(neurons.gather(leaves, index), leaves, images).cost_analysis()["flops"]
    # A padded 3×3 window meets 3 · side - 2 pixels along each axis, all its places together.
    first, other = (2 * batch * (3 * side - 2) ** 2 * inputs * width for inputs in (3, width))
    forward, of_kernels, of_inputs = first + 3 * other, first + 3 * other, 3 * other
    # What is left is ReLU, pooling, the head and the loss.
    for share, counted in flops.items():
        assert 1 < counted / (forward + of_inputs + share * of_kernels) < 1.03


@pytest.mark.parametrize("remat", [False, True])
def test_inside_a_network_with_batch_norm_all_leaves_of_a_neuron_have_their_gradient(remat):
    variant = resnet.Variant((1,), (4,), bottleneck=False, small=True)
    model = models.create_model(variant, num_classes=3, image_size=8, remat=remat, rngs=nnx.Rngs(0))
    _, params, stats = params_lib.flatten_model(model)
    leaves, images = params | stats, normal(0, (3, 8, 8, 3))
    found = neurons.find_layers(params, ("(stem|stage1)/.*",))
    index = neurons.channel_index({layer: np.array([1, 3], np.int32) for layer in found}, found)
    assert {path.split("/")[-1] for path in index} == {"kernel", "scale", "bias"}

    @functools.partial(jax.jit, compiler_options=QUICK)
    def both(slices, params, leaves, images):
        by_slices = jax.grad(loss_of(model, index), has_aux=True)(slices, leaves, images)
        return by_slices, jax.grad(lambda p: loss_of(model, {})({}, leaves | p, images), has_aux=True)(params)

    (part, moved), (whole, moved_plain) = jax.device_get(both(neurons.gather(params, index), params, leaves, images))
    assert moved.keys() == stats.keys()
    for path, value in moved_plain.items():
        np.testing.assert_allclose(moved[path], value, rtol=1e-5, atol=1e-6)
    assert part.keys() == index.keys()
    for path, channels in index.items():
        assert np.abs(whole[path][..., channels]).max() > 0
        scale = np.abs(whole[path]).max()
        np.testing.assert_allclose(part[path], whole[path][..., channels], rtol=1e-4, atol=1e-5 * scale)
