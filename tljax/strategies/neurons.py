"""Single neurons: which output channels of which layers learn, and their part of the layers' leaves.

A neuron is an output channel of a convolution or dense layer: its part of the kernel, its bias, and its scale and bias
in the BatchNorm that follows. All these have the channel as last axis, so a neuron's part of a leaf is `leaf[..., i]`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tljax.config import NeuronsConfig
from tljax.errors import UserError, did_you_mean
from tljax.models.layers import NORM_AFTER
from tljax.models.params import Variables
from tljax.models.partial_training import PartiallyTrainable, TrainableChannels

Layers = Mapping[str, Sequence[str]]


def find_layers(
    params: Mapping, patterns: Sequence[str], norm_after: Sequence[tuple[str, str]] = NORM_AFTER
) -> dict[str, tuple[str, ...]]:
    """The layers that patterns ask for, each with the leaves that its neurons are made of, the kernel first.

    Args:
      params: path → leaf with a `shape`.
      patterns: of paths of layers (`stage3/conv1`) or of their kernels; a full match of any one will do.
      norm_after: pairs of a layer's path pattern and the BatchNorm's path; the first that matches decides, and layers
        that none matches have no norm of their own.

    Raises:
      UserError: a pattern matches no layer.
    """
    known = {
        path.removesuffix("/kernel"): path
        for path, leaf in params.items()
        if path.endswith("/kernel") and len(leaf.shape) > 1
    }
    for pattern in patterns:
        if not any(_matches(pattern, layer) for layer in known):
            raise UserError(
                f'neurons.layers: "{pattern}" matches no convolution or dense layer{did_you_mean(pattern, known)}'
            )
    found = {}
    for layer, kernel in known.items():
        if pattern_of(layer, patterns) is not None:
            norms = [re.sub(p, norm, layer) for p, norm in norm_after if re.fullmatch(p, layer)][:1]
            others = [f"{layer}/bias", *(f"{norm}/{leaf}" for norm in norms for leaf in ("scale", "bias"))]
            found[layer] = (kernel, *(path for path in others if path in params))
    return found


def pattern_of(layer: str, patterns: Sequence[str]) -> str | None:
    """The first pattern that asks for a layer, or None."""
    return next((pattern for pattern in patterns if _matches(pattern, layer)), None)


def channel_counts(layers: Layers, params: Mapping, config: NeuronsConfig) -> dict[str, int]:
    """How many neurons of each layer learn, before they are chosen.

    Under `scope="global"` only the sum is certain; a layer's number is then its even share of it.

    Raises:
      UserError: `config.count` is more than there are.
    """
    outputs = {layer: params[paths[0]].shape[-1] for layer, paths in layers.items()}
    if config.scope == "layer":
        return {layer: _how_many(out, config, layer) for layer, out in outputs.items()}
    ends = np.cumsum(list(outputs.values()))
    # Whole parts of the running sum, so that the shares add up.
    ends = ends * _how_many(int(ends[-1]), config, "all layers together") // ends[-1]
    return dict(zip(outputs, np.diff(ends, prepend=0).tolist(), strict=True))


def select_channels(scores: Mapping[str, np.ndarray], config: NeuronsConfig) -> dict[str, np.ndarray]:
    """The neurons with the highest scores, as sorted int32 indices by layer; among equals the first.

    Under `scope="global"` scores are compared across layers, each layer's divided by its root mean square, and a layer
    may get none.

    Args:
      scores: layer → [out].
      config: `fraction`, `count` and `scope`.

    Raises:
      UserError: a score is not finite, or `config.count` is more than there are.
    """
    scores = {layer: np.asarray(score, np.float64) for layer, score in scores.items()}
    for layer, score in scores.items():
        if not np.isfinite(score).all():
            raise UserError(f"neurons.criterion={config.criterion!r} is not finite for neurons of {layer}.")
    if config.scope == "layer":
        return {layer: _best(score, _how_many(len(score), config, layer)) for layer, score in scores.items()}
    together = np.concatenate([score / (np.sqrt(np.mean(score**2)) or 1.0) for score in scores.values()])
    best = _best(together, _how_many(len(together), config, "all layers together"))
    ends = np.cumsum([len(score) for score in scores.values()])
    parts = np.split(best, np.searchsorted(best, ends[:-1]))
    return {
        layer: (part - end + len(scores[layer])).astype(np.int32)
        for layer, part, end in zip(scores, parts, ends, strict=True)
    }


def channel_index(chosen: Mapping[str, Sequence[int]], layers: Layers) -> dict[str, np.ndarray]:
    """Leaf path → the channels that learn, int32 [k], for every leaf of the layers of which any do."""
    found = {layer: np.asarray(channels, np.int32) for layer, channels in chosen.items() if len(channels)}
    return {path: channels for layer, channels in found.items() for path in layers[layer]}


def gather(variables: Variables, index: Mapping[str, jax.Array]) -> Variables:
    """The parts [..., k] of leaves that belong to single neurons; pure."""
    return {path: jnp.asarray(variables[path])[..., channels] for path, channels in index.items()}


def scatter(variables: Variables, slices: Variables, index: Mapping[str, jax.Array]) -> Variables:
    """The leaves with `slices` in the place of their parts, all else to the bit as it was; pure and differentiable."""
    # Told that no channel comes twice, the derivative is a gather and no more.
    put = {"indices_are_sorted": True, "unique_indices": True}
    whole = {path: jnp.asarray(variables[path]).at[..., index[path]].set(part, **put) for path, part in slices.items()}
    return {**variables, **whole}


def attach_channels(model: nnx.Module, slices: Variables, index: Mapping[str, jax.Array]) -> None:
    """Lets the layers of a model whose kernels have slices learn these alone, in place.

    The model's leaves must hold the slices already, by `scatter`. Gradients then reach the slices of kernels directly,
    and those of vectors and grouped kernels through `scatter`.
    """
    for path, part in slices.items():
        *layer, leaf = path.split("/")
        module = functools.reduce(getattr, layer, model)
        if leaf == "kernel" and isinstance(module, PartiallyTrainable):
            module.train_channels(TrainableChannels(part, jnp.asarray(index[path])))


def _matches(pattern: str, layer: str) -> bool:
    return any(re.fullmatch(pattern, path) for path in (layer, f"{layer}/kernel"))


def _how_many(out: int, config: NeuronsConfig, where: str) -> int:
    if config.count is None:
        return max(1, round(config.fraction * out))
    if config.count > out:
        raise UserError(f"neurons.count ({config.count}) is more than the {out} neurons of {where}.")
    return config.count


def _best(scores: np.ndarray, count: int) -> np.ndarray:
    return np.sort(np.argsort(-scores, kind="stable")[:count]).astype(np.int32)
