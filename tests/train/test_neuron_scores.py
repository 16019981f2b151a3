"""Selection criteria of neurons compared with a direct computation, image by image in float64."""

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
    """Graph definition, variables and layers of a network with dropout and random statistics; images and labels."""
    model = models.create_model(
        VARIANT, num_classes=3, image_size=4, hidden=(5,), dropout=0.5, remat=True, rngs=nnx.Rngs(3)
    )
    graphdef, params, stats = params_lib.flatten_model(model)
    rng = np.random.default_rng(0)
    ranges = {"scale": (0.5, 1.5), "mean": (-0.2, 0.2), "var": (0.5, 2), "bias": (-0.3, 0.3), "kernel": (-0.5, 0.5)}
    variables = {
        path: rng.uniform(*ranges[path.split("/")[-1]], x.shape).astype(np.float32)
        for path, x in (params | stats).items()
    }
    layers = neurons.find_layers(params, ("(?!head/).*", "head/hidden0"))
    images = rng.integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    labels = rng.integers(0, 3, 6).astype(np.int32)
    return graphdef, variables, layers, images, labels


def scored_model(graphdef):
    return ScoredModel(graphdef, TASKS["classification"], UNIT, "float32")


def compute_scores(case, criterion, key=0, first_size=3):
    """Return the scores from two batches, the first with `first_size` images."""
    graphdef, variables, layers, images, labels = case
    parts = (slice(first_size), slice(first_size, None))
    batches = [{"image": images[part], "label": labels[part]} for part in parts]
    config = NeuronsConfig(criterion=criterion)
    return score_channels(scored_model(graphdef), variables, layers, batches, config, jax.random.key(key))


def per_image_gradients(case):
    """Return the gradients [images, ...] of every parameter in float64, in inference mode."""
    graphdef, variables, layers, images, labels = case
    inputs = np.asarray(make_preprocess(UNIT, None)(images), np.float64)
    with jax.enable_x64(True):
        variables = {p: jnp.asarray(v, jnp.float64) for p, v in variables.items()}

        def loss(variables, image, label):
            logits = params_lib.merge(graphdef, variables)(image[None])[0]
            return -jax.nn.log_softmax(logits)[label]

        grad = jax.jit(jax.grad(loss))
        grads = [jax.device_get(grad(variables, image, label)) for image, label in zip(inputs, labels, strict=True)]
    return {p: np.stack([g[p] for g in grads]) for paths in layers.values() for p in paths}


def test_gradient_criteria_match_per_image_gradients(case):
    _, variables, layers, *_ = case
    grads = per_image_gradients(case)
    fisher = compute_scores(case, "fisher")
    effect = compute_scores(case, "gradient_weight")
    assert fisher.keys() == effect.keys() == layers.keys()
    for layer, paths in layers.items():
        out = variables[paths[0]].shape[-1]
        information = np.zeros(out)
        change = np.zeros(out)
        for path in paths:
            for neuron in range(out):
                image_grads = grads[path][..., neuron].reshape(6, -1)
                information[neuron] += (image_grads**2).mean(0).sum()
                change[neuron] += image_grads.mean(0) @ variables[path][..., neuron].ravel()
        assert fisher[layer].dtype == np.float64
        np.testing.assert_allclose(fisher[layer], information, rtol=2e-4, atol=1e-5 * information.max())
        np.testing.assert_allclose(effect[layer], np.abs(change), rtol=2e-4, atol=1e-5 * np.abs(change).max())


def test_activation_variance_over_images_and_locations(case):
    graphdef, variables, layers, images, _ = case

    @jax.jit
    def outputs(variables, images):
        model = params_lib.merge(graphdef, variables)
        x = make_preprocess(UNIT, None)(images)
        pooled = model.features(x)["pool"].mean((1, 2))
        return model.stem.conv1.conv(x), model.head.hidden0(pooled)

    stem, hidden = (np.asarray(y, np.float64) for y in outputs(variables, images))
    scores = compute_scores(case, "activation_variance", first_size=4)
    assert scores.keys() == layers.keys()
    np.testing.assert_allclose(scores["stem/conv1/conv"], stem.var((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(scores["head/hidden0"], hidden.var(0), rtol=1e-4)


def test_magnitude_is_norm_of_kernel(case):
    variables = case[1]
    for layer, values in compute_scores(case, "magnitude").items():
        kernel = variables[f"{layer}/kernel"].astype(np.float64)
        expected = [np.linalg.norm(kernel[..., i]) for i in range(kernel.shape[-1])]
        np.testing.assert_allclose(values, expected, rtol=1e-12)


def test_random_scores_depend_only_on_key_and_layer(case):
    graphdef, variables, layers, *_ = case
    first, repeated, other_key = (compute_scores(case, "random", key) for key in (0, 0, 1))
    one_layer = dict([list(layers.items())[1]])
    config = NeuronsConfig(criterion="random")
    alone = score_channels(scored_model(graphdef), variables, one_layer, (), config, jax.random.key(0))
    for layer, values in first.items():
        assert ((values >= 0) & (values < 1)).all()
        np.testing.assert_array_equal(repeated[layer], values)
        assert (other_key[layer] != values).all()
        assert layer not in alone or (alone[layer] == values).all()
    assert len({values[0] for values in first.values()}) == len(first)


def test_auxiliary_layers_score_zero():
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
        scores = score_channels(scored_model(graphdef), params | stats, layers, [batch], config, jax.random.key(0))
        assert scores.keys() == layers.keys()
        for layer, values in scores.items():
            assert (values > 0).any() == layer.startswith("stem/"), (criterion, layer)
