"""What makes a neuron worth learning: a score for each output channel of the layers in question.

Criteria see the network in inference mode: running statistics, nothing dropped, no auxiliary classifier. The layers of
an auxiliary classifier have no gradient and no activation then, and score 0 by the criteria that look at these.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

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
    """What is measured, without the values of its leaves.

    Attributes:
      graphdef: of the model.
      task: whose labels' loss counts.
      preprocess: of the weights, at the run's own input size.
      dtype: of the computation.
    """

    graphdef: nnx.GraphDef
    task: Task
    preprocess: Preprocess
    dtype: str


def score_channels(
    network: ScoredModel,
    leaves: Variables,
    layers: Layers,
    batches: Iterable[Batch],
    config: NeuronsConfig,
    key: jax.Array,
) -> dict[str, np.ndarray]:
    """The scores [out] of every layer's neurons, float64; the higher, the more worth learning.

    Args:
      network: the model.
      leaves: all of the model's.
      layers: from `neurons.layers_of`.
      batches: uint8 `image` [B, H, W, C] and the task's targets; criteria that look at no pictures read none.
      config: its `criterion`.
      key: of chance.
    """
    if config.criterion == "random":
        return {layer: _random(key, layer, leaves[paths[0]].shape[-1]) for layer, paths in layers.items()}
    if config.criterion == "magnitude":
        return {layer: _magnitude(leaves[paths[0]]) for layer, paths in layers.items()}
    static = tuple((layer, tuple(paths)) for layer, paths in layers.items())
    measure = _compiled(config.criterion, network, static)
    sizes, measured = [], []
    for batch in batches:
        sizes.append(len(batch["label"]))
        measured.append(jax.device_get(measure(leaves, dict(batch))))
    shares = np.array(sizes) / sum(sizes)
    _, combine = CRITERIA[config.criterion]
    return {layer: combine(np.stack([m[layer] for m in measured]).astype(np.float64), shares) for layer in layers}


def fisher(network: ScoredModel, layers: Layers, leaves: Variables, images: jax.Array, batch: Batch):
    """The diagonal of the empirical Fisher information, summed over the neuron's leaves.

    That is the mean over pictures of the squared gradient of a picture's loss (Kirkpatrick et al. 2017,
    arXiv:1612.00796). Sung et al. 2021, arXiv:2111.09839, choose the weights that learn by it.
    """

    def of_picture(picture):
        grads = _gradients(network, layers, leaves, *picture)
        return _over_leaves(layers, {path: grad**2 for path, grad in grads.items()})

    # One after another: each has gradients as large as the leaves.
    of_each = jax.lax.map(of_picture, jax.tree.map(lambda x: x[:, None], (images, batch)))
    return jax.tree.map(lambda x: x.mean(0), of_each)


def gradient_weight(network: ScoredModel, layers: Layers, leaves: Variables, images: jax.Array, batch: Batch):
    """Gradient of the loss times weight, summed over the neuron's leaves; the score is the magnitude.

    To first order that is how much the loss changes when the neuron's weights become zero together (Molchanov et al.
    2019, arXiv:1906.10771, who square it for weights behind one gate). A sum of |gradient · weight| would count changes
    that cancel, and favour neurons with many weights.
    """
    grads = _gradients(network, layers, leaves, images, batch)
    return _over_leaves(layers, {path: grad * leaves[path] for path, grad in grads.items()})


def activation_moments(network: ScoredModel, layers: Layers, leaves: Variables, images: jax.Array, batch: Batch):
    """Mean and variance [2, out] of the layer's output over pictures and places; the score is the variance.

    A channel that is the same everywhere tells nothing; Polyak & Wolf 2015 prune such ones
    (doi:10.1109/ACCESS.2015.2494536).
    """
    model, seen = params_lib.merge(network.graphdef, leaves), {}
    model.remat = False  # outputs could not be seen from outside, and there is no backward pass
    for layer in layers:
        module = functools.reduce(getattr, layer.split("/"), model)
        module.on_output = functools.partial(seen.__setitem__, layer)
    model(images, train=False)

    def moments(layer: str) -> jax.Array:
        if layer not in seen:
            return jnp.zeros((2, leaves[layers[layer][0]].shape[-1]))
        y = seen[layer].astype(jnp.float32)
        axes = range(y.ndim - 1)
        return jnp.stack([y.mean(axes), y.var(axes)])

    return {layer: moments(layer) for layer in layers}


def _absolute_mean(measured: np.ndarray, shares: np.ndarray) -> np.ndarray:
    return np.abs(shares @ measured)


def _total_variance(measured: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """[batches, 2, out] → [out]: the mean of the batches' variances and the variance of their means."""
    means, variances = measured[:, 0], measured[:, 1]
    return shares @ (variances + (means - shares @ means) ** 2)


# What is measured on a batch, and how batches, each with its share of the pictures, add up to the score.
CRITERIA: dict[str, tuple[Callable, Callable]] = {
    "fisher": (fisher, _absolute_mean),
    "gradient_weight": (gradient_weight, _absolute_mean),
    "activation_variance": (activation_moments, _total_variance),
}


def _magnitude(kernel: jax.Array) -> np.ndarray:
    """The L2 norm of each neuron's part of the kernel (He et al. 2018, arXiv:1808.06866, prune by it)."""
    kernel = np.asarray(kernel, np.float64)
    return np.sqrt((kernel**2).sum(tuple(range(kernel.ndim - 1))))


def _random(key: jax.Array, layer: str, out: int) -> np.ndarray:
    """Uniform in [0, 1), by the layer's path, so that other layers change nothing."""
    words = np.asarray(jax.random.key_data(key)).ravel().tolist()
    return np.random.default_rng([*words, zlib.crc32(layer.encode())]).random(out)


@functools.lru_cache(maxsize=16)
def _compiled(criterion: str, network: ScoredModel, layers):
    measure, _ = CRITERIA[criterion]
    prepare = make_preprocess(network.preprocess, network.preprocess.size, network.dtype)

    def measured(leaves: Variables, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return measure(network, dict(layers), leaves, prepare(batch.pop("image")), batch)

    return jax.jit(measured)


def _gradients(network: ScoredModel, layers: Layers, leaves: Variables, images: jax.Array, batch: Batch) -> Variables:
    """Of the labels' loss, with respect to the leaves of `layers`."""
    loss = losses.get_loss(network.task.label_loss)

    def loss_fn(watched: Variables) -> jax.Array:
        outputs = params_lib.merge(network.graphdef, leaves | watched).forward_all(images)
        return loss(outputs, batch, {}, {"label_smoothing": 0.0})

    return jax.grad(loss_fn)({path: leaves[path] for paths in layers.values() for path in paths})


def _over_leaves(layers: Layers, values: Variables) -> dict[str, jax.Array]:
    """Sums over all that belongs to a neuron: {path: [..., out]} → {layer: [out]}."""
    return {layer: sum(values[p].sum(range(values[p].ndim - 1)) for p in paths) for layer, paths in layers.items()}
