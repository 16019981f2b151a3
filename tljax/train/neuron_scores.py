"""Selection criteria of neurons: a score for each output channel of given layers.

The network is in inference mode: it uses running statistics, no dropout and no auxiliary classifiers. Layers of an
auxiliary classifier therefore have no gradient and no activation, and score 0 by criteria that need these.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tljax import losses
from tljax.config import NeuronsConfig
from tljax.models import params as params_lib
from tljax.models.params import Variables
from tljax.strategies.neurons import Layers
from tljax.tasks import Task
from tljax.weights import Preprocess, make_preprocess

Batch = Mapping[str, jax.Array]


class ScoredModel(NamedTuple):
    """Everything about a model that shapes the computation of scores.

    Attributes:
      graphdef: graph definition of the model.
      task: the task, whose loss of labels is used.
      preprocess: preprocessing of the pretrained weights, at the input size of the run.
      dtype: data type of the computation.
    """

    graphdef: nnx.GraphDef
    task: Task
    preprocess: Preprocess
    dtype: str


def score_channels(
    model: ScoredModel,
    variables: Variables,
    layers: Layers,
    batches: Iterable[Batch],
    config: NeuronsConfig,
    key: jax.Array,
) -> dict[str, np.ndarray]:
    """Return the scores [out] of every layer's channels, float64; the channels with the highest scores should train.

    Args:
      model: the model.
      variables: all variables of the model.
      layers: layers to score, from `neurons.find_layers`.
      batches: uint8 `image` [B, H, W, C] and the targets of the task; not read by criteria that need no images.
      config: its `criterion`.
      key: random key, for the criterion "random".
    """
    if config.criterion == "random":
        return {layer: _random_scores(key, layer, variables[paths[0]].shape[-1]) for layer, paths in layers.items()}
    if config.criterion == "magnitude":
        return {layer: _kernel_norms(variables[paths[0]]) for layer, paths in layers.items()}
    layer_paths = tuple((layer, tuple(paths)) for layer, paths in layers.items())
    measure = _compile_measure(config.criterion, model, layer_paths)
    sizes, measured = [], []
    for batch in batches:
        sizes.append(len(batch["label"]))
        measured.append(jax.device_get(measure(variables, dict(batch))))
    weights = np.array(sizes) / sum(sizes)
    _, combine = CRITERIA[config.criterion]
    return {layer: combine(np.stack([m[layer] for m in measured]).astype(np.float64), weights) for layer in layers}


def fisher(model: ScoredModel, layers: Layers, variables: Variables, images: jax.Array, batch: Batch):
    """Return the diagonal of the empirical Fisher information, summed over the parameters of each channel.

    This is the mean over images of the squared gradient of the loss of one image (Kirkpatrick et al. 2017,
    arXiv:1612.00796). Sung et al. 2021, arXiv:2111.09839, select trainable weights by it.
    """

    def measure_image(image_and_targets):
        grads = _gradients(model, layers, variables, *image_and_targets)
        return _sum_by_channel(layers, {path: grad**2 for path, grad in grads.items()})

    # One image after another, because the gradients of one image need as much memory as the parameters.
    per_image = jax.lax.map(measure_image, jax.tree.map(lambda x: x[:, None], (images, batch)))
    return jax.tree.map(lambda x: x.mean(0), per_image)


def gradient_weight(model: ScoredModel, layers: Layers, variables: Variables, images: jax.Array, batch: Batch):
    """Return the gradient of the loss times the weight, summed over each channel; the score is the absolute value.

    To first order this is the change of the loss if all weights of the channel are set to zero (Molchanov et al. 2019,
    arXiv:1906.10771, who square it for weights behind one gate). A sum of |gradient · weight| would include changes
    that cancel, and favor channels with many weights.
    """
    grads = _gradients(model, layers, variables, images, batch)
    return _sum_by_channel(layers, {path: grad * variables[path] for path, grad in grads.items()})


def activation_moments(model: ScoredModel, layers: Layers, variables: Variables, images: jax.Array, batch: Batch):
    """Return mean and variance [2, out] of each layer's output over images and locations; the score is the variance.

    A channel with constant output carries no information; Polyak & Wolf 2015 prune such channels
    (doi:10.1109/ACCESS.2015.2494536).
    """
    network = params_lib.merge(model.graphdef, variables)
    network.remat = False  # rematerialization would hide the outputs, and there is no backward pass
    outputs: dict[str, jax.Array] = {}
    for layer in layers:
        module: Any = functools.reduce(getattr, layer.split("/"), network)
        module.on_output = functools.partial(outputs.__setitem__, layer)
    network(images, train=False)

    def moments(layer: str) -> jax.Array:
        if layer not in outputs:
            return jnp.zeros((2, variables[layers[layer][0]].shape[-1]))
        y = outputs[layer].astype(jnp.float32)
        axes = range(y.ndim - 1)
        return jnp.stack([y.mean(axes), y.var(axes)])

    return {layer: moments(layer) for layer in layers}


def _absolute_mean(measured: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.abs(weights @ measured)


def _total_variance(measured: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the total variance [out] from moments [batches, 2, out]: mean of variances plus variance of means."""
    means, variances = measured[:, 0], measured[:, 1]
    return weights @ (variances + (means - weights @ means) ** 2)


# Per criterion: the measurement on a batch, and the function that combines batches, weighted by their fraction of the
# images, to the score.
CRITERIA: dict[str, tuple[Callable, Callable]] = {
    "fisher": (fisher, _absolute_mean),
    "gradient_weight": (gradient_weight, _absolute_mean),
    "activation_variance": (activation_moments, _total_variance),
}


def _kernel_norms(kernel: jax.Array) -> np.ndarray:
    """Return the L2 norm of each channel's kernel slice (He et al. 2018, arXiv:1808.06866, prune by it)."""
    values = np.asarray(kernel, np.float64)
    return np.sqrt((values**2).sum(tuple(range(values.ndim - 1))))


def _random_scores(key: jax.Array, layer: str, channels: int) -> np.ndarray:
    """Return uniform numbers in [0, 1), seeded by the layer's path, so that they do not depend on other layers."""
    words = np.asarray(jax.random.key_data(key)).ravel().tolist()
    return np.random.default_rng([*words, zlib.crc32(layer.encode())]).random(channels)


@functools.lru_cache(maxsize=16)
def _compile_measure(criterion: str, model: ScoredModel, layer_paths: tuple[tuple[str, tuple[str, ...]], ...]):
    criterion_fn, _ = CRITERIA[criterion]
    prepare = make_preprocess(model.preprocess, model.preprocess.size, model.dtype)

    def measure(variables: Variables, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return criterion_fn(model, dict(layer_paths), variables, prepare(batch.pop("image")), batch)

    return jax.jit(measure)


def _gradients(model: ScoredModel, layers: Layers, variables: Variables, images: jax.Array, batch: Batch) -> Variables:
    """Return the gradients of the loss of labels with respect to the parameters of `layers`."""
    loss = losses.get_loss(model.task.label_loss)

    def loss_fn(layer_params: Variables) -> jax.Array:
        outputs = params_lib.merge(model.graphdef, variables | layer_params).forward_all(images)
        return loss(outputs, batch, {}, {"label_smoothing": 0.0})

    return jax.grad(loss_fn)({path: variables[path] for paths in layers.values() for path in paths})


def _sum_by_channel(layers: Layers, values: Variables) -> dict[str, Any]:
    """Sum arrays over everything but the channel and over a layer's parameters: {path: [..., out]} → {layer: [out]}."""
    return {layer: sum(values[p].sum(range(values[p].ndim - 1)) for p in paths) for layer, paths in layers.items()}
