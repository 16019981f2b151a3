"""Every criterion beside a direct computation: picture by picture, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tljax import models
from tljax.config import NeuronsConfig
from tljax.models import params as params_lib
from tljax.models.backbones import inception, vgg
from tljax.models.layers import TORCH_BN
from tljax.strategies import neurons
from tljax.tasks import TASKS
from tljax.train.neuron_scores import ScoredModel, score_channels
from tljax.weights import PRESETS as PREPROCESS
from tljax.weights import make_preprocess

VARIANT = vgg.Variant(((3,), (4,)), norm=TORCH_BN)
UNIT = PREPROCESS["unit"]


@pytest.fixture(scope="module")
def case():
    """A network with dropout and moved statistics, its layers, and pictures with labels."""
    model = models.create_model(
        VARIANT, num_classes=3, image_size=4, hidden=(5,), dropout=0.5, remat=True, rngs=nnx.Rngs(3)
    )
    graphdef, params, stats = params_lib.flatten_model(model)
    rng = np.random.default_rng(0)
    draw = {"scale": (0.5, 1.5), "mean": (-0.2, 0.2), "var": (0.5, 2), "bias": (-0.3, 0.3), "kernel": (-0.5, 0.5)}
    leaves = {p: rng.uniform(*draw[p.split("/")[-1]], v.shape).astype(np.float32) for p, v in (params | stats).items()}
    layers = neurons.find_layers(params, ("(?!head/).*", "head/hidden0"))
    images, labels = rng.integers(0, 256, (6, 4, 4, 3), dtype=np.uint8), rng.integers(0, 3, 6).astype(np.int32)
    return graphdef, leaves, layers, images, labels


def network(graphdef):
    """What is measured."""
    return ScoredModel(graphdef, TASKS["classification"], UNIT, "float32")


def scores_of(case, criterion, key=0, cut=3):
    """Scores by two batches, of which the first has `cut` pictures."""
    graphdef, leaves, layers, images, labels = case
    batches = [{"image": images[part], "label": labels[part]} for part in (slice(cut), slice(cut, None))]
    config = NeuronsConfig(criterion=criterion)
    return score_channels(network(graphdef), leaves, layers, batches, config, jax.random.key(key))


def per_picture_gradients(case):
    """[pictures, ...] of every leaf, in float64, of `model(picture)` in inference mode."""
    graphdef, leaves, layers, images, labels = case
    inputs = np.asarray(make_preprocess(UNIT, None)(images), np.float64)
    with jax.enable_x64(True):
        leaves = {p: jnp.asarray(v, jnp.float64) for p, v in leaves.items()}

        def loss(leaves, image, label):
            logits = params_lib.merge(graphdef, leaves)(image[None])[0]
            return -jax.nn.log_softmax(logits)[label]

        grad = jax.jit(jax.grad(loss))
        grads = [jax.device_get(grad(leaves, image, label)) for image, label in zip(inputs, labels, strict=True)]
    return {p: np.stack([g[p] for g in grads]) for paths in layers.values() for p in paths}


def test_gradient_criteria_are_those_of_pictures_taken_one_by_one(case):
    _, leaves, layers, *_ = case
    grads = per_picture_gradients(case)
    fisher, effect = scores_of(case, "fisher"), scores_of(case, "gradient_weight")
    assert fisher.keys() == effect.keys() == layers.keys()
    for layer, paths in layers.items():
        out = leaves[paths[0]].shape[-1]
        information, change = np.zeros(out), np.zeros(out)
        for path in paths:
            for neuron in range(out):
                each = grads[path][..., neuron].reshape(6, -1)
                information[neuron] += (each**2).mean(0).sum()
                change[neuron] += each.mean(0) @ leaves[path][..., neuron].ravel()
        assert fisher[layer].dtype == np.float64
        np.testing.assert_allclose(fisher[layer], information, rtol=2e-4, atol=1e-5 * information.max())
        np.testing.assert_allclose(effect[layer], np.abs(change), rtol=2e-4, atol=1e-5 * np.abs(change).max())


def test_activation_variance_is_over_all_pictures_and_places(case):
    graphdef, leaves, layers, images, _ = case

    @jax.jit
    def outputs(leaves, images):
        model, x = params_lib.merge(graphdef, leaves), make_preprocess(UNIT, None)(images)
        pooled = model.features(x)["pool"].mean((1, 2))
        return model.stem.conv1.conv(x), model.head.hidden0(pooled)

    stem, hidden = (np.asarray(y, np.float64) for y in outputs(leaves, images))
    found = scores_of(case, "activation_variance", cut=4)
    assert found.keys() == layers.keys()
    np.testing.assert_allclose(found["stem/conv1/conv"], stem.var((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(found["head/hidden0"], hidden.var(0), rtol=1e-4)


def test_magnitude_is_the_norm_of_the_kernel(case):
    leaves = case[1]
    for layer, values in scores_of(case, "magnitude").items():
        kernel = leaves[f"{layer}/kernel"].astype(np.float64)
        expected = [np.linalg.norm(kernel[..., i]) for i in range(kernel.shape[-1])]
        np.testing.assert_allclose(values, expected, rtol=1e-12)


def test_chance_depends_on_the_key_and_the_layer_alone(case):
    graphdef, leaves, layers, *_ = case
    first, again, other = (scores_of(case, "random", key) for key in (0, 0, 1))
    one = dict([list(layers.items())[1]])
    config = NeuronsConfig(criterion="random")
    alone = score_channels(network(graphdef), leaves, one, (), config, jax.random.key(0))
    for layer, values in first.items():
        assert ((values >= 0) & (values < 1)).all()
        np.testing.assert_array_equal(again[layer], values)
        assert (other[layer] != values).all()
        assert layer not in alone or (alone[layer] == values).all()
    assert len({values[0] for values in first.values()}) == len(first)


def test_what_inference_does_not_pass_through_scores_nothing():
    steps = (inception.Conv(2), inception.AverageTo(1))
    aux = (inception.Auxiliary("stage1", steps),)
    variant = inception.Variant(3, ((inception.Conv(2, 3, 2),), (inception.Conv(2),)), auxiliary=aux)
    model = models.create_model(variant, num_classes=3, image_size=4, auxiliary=True, rngs=nnx.Rngs(0))
    graphdef, params, stats = params_lib.flatten_model(model)
    layers = neurons.find_layers(params, ("head/aux1/.*", "stem/.*"))
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    batch = {"image": images, "label": np.array([0, 1])}
    for criterion in ("gradient_weight", "activation_variance"):
        config = NeuronsConfig(criterion=criterion)
        found = score_channels(network(graphdef), params | stats, layers, [batch], config, jax.random.key(0))
        assert found.keys() == layers.keys()
        for layer, values in found.items():
            assert (values > 0).any() == layer.startswith("stem/"), (criterion, layer)
