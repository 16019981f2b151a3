"""Training of single neurons: which output channels of which layers train, and their slices of the parameters.

A neuron is an output channel of a convolution or dense layer: its slice of the kernel, its bias, and its scale and bias
in the BatchNorm that follows. The channel is the last axis of all these arrays, so the slice of a neuron is
`param[..., i]`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tljax.config import NeuronsConfig
from tljax.errors import UserError, did_you_mean
from tljax.models.layers import NORM_AFTER
from tljax.models.params import Variables
from tljax.models.partial_training import PartiallyTrainable, TrainableChannels

# Layer path → paths of the parameters that have its output channels as last axis, the kernel first.
Layers = Mapping[str, Sequence[str]]


def find_layers(
    params: Mapping, patterns: Sequence[str], norm_after: Sequence[tuple[str, str]] = NORM_AFTER
) -> dict[str, tuple[str, ...]]:
    """Return the layers that match patterns, {layer path: parameter paths}, the kernel first.

    Args:
      params: path → parameter with a `shape`.
      patterns: regular expressions of layer paths (`stage3/conv1`) or kernel paths; one full match selects a layer.
      norm_after: pairs of a pattern of layer paths and the path of the BatchNorm that follows. The first match
        decides; a layer without a match has no norm.

    Raises:
      UserError: a pattern matches no layer.
    """
    kernels = {
        path.removesuffix("/kernel"): path
        for path, param in params.items()
        if path.endswith("/kernel") and len(param.shape) > 1
    }
    for pattern in patterns:
        if not any(_matches(pattern, layer) for layer in kernels):
            raise UserError(
                f'neurons.layers: "{pattern}" matches no convolution or dense layer{did_you_mean(pattern, kernels)}'
            )
    layers = {}
    for layer, kernel in kernels.items():
        if matching_pattern(layer, patterns) is not None:
            norms = [re.sub(p, norm, layer) for p, norm in norm_after if re.fullmatch(p, layer)][:1]
            others = [f"{layer}/bias", *(f"{norm}/{name}" for norm in norms for name in ("scale", "bias"))]
            layers[layer] = (kernel, *(path for path in others if path in params))
    return layers


def matching_pattern(layer: str, patterns: Sequence[str]) -> str | None:
    """Return the first pattern that matches a layer, or None."""
    return next((pattern for pattern in patterns if _matches(pattern, layer)), None)


def channel_counts(layers: Layers, params: Mapping, config: NeuronsConfig) -> dict[str, int]:
    """Return how many channels of each layer train, before they are selected.

    With `scope="global"` only the sum is exact; a layer's count is then proportional to its number of channels.

    Raises:
      UserError: `config.count` is larger than the number of channels.
    """
    channels = {layer: params[paths[0]].shape[-1] for layer, paths in layers.items()}
    if config.scope == "layer":
        return {layer: _num_selected(total, config, layer) for layer, total in channels.items()}
    ends = np.cumsum(list(channels.values()))
    # Round the running sum instead of the shares, so that the counts add up to the total.
    ends = ends * _num_selected(int(ends[-1]), config, "all layers together") // ends[-1]
    return dict(zip(channels, np.diff(ends, prepend=0).tolist(), strict=True))


def select_channels(scores: Mapping[str, np.ndarray], config: NeuronsConfig) -> dict[str, np.ndarray]:
    """Return the channels with the highest scores as sorted int32 indices [k] by layer; of equal scores, the first.

    With `scope="global"` each layer's scores are divided by their root mean square and then compared across layers; a
    layer may have no selected channel.

    Args:
      scores: layer → [out].
      config: its `fraction`, `count` and `scope`.

    Raises:
      UserError: a score is not finite, or `config.count` is larger than the number of channels.
    """
    scores = {layer: np.asarray(score, np.float64) for layer, score in scores.items()}
    for layer, score in scores.items():
        if not np.isfinite(score).all():
            raise UserError(f"neurons.criterion={config.criterion!r} is not finite for neurons of {layer}.")
    if config.scope == "layer":
        return {layer: _top_indices(score, _num_selected(len(score), config, layer)) for layer, score in scores.items()}
    normalized = np.concatenate([score / (np.sqrt(np.mean(score**2)) or 1.0) for score in scores.values()])
    selected = _top_indices(normalized, _num_selected(len(normalized), config, "all layers together"))
    ends = np.cumsum([len(score) for score in scores.values()])
    by_layer = np.split(selected, np.searchsorted(selected, ends[:-1]))
    return {
        layer: (indices - end + len(scores[layer])).astype(np.int32)
        for layer, indices, end in zip(scores, by_layer, ends, strict=True)
    }


def channel_index(selected: Mapping[str, Sequence[int]], layers: Layers) -> dict[str, np.ndarray]:
    """Return the trainable channels, int32 [k], of every parameter of the layers in which any channel trains."""
    indices = {layer: np.asarray(channels, np.int32) for layer, channels in selected.items() if len(channels)}
    return {path: channels for layer, channels in indices.items() for path in layers[layer]}


def gather_channels(variables: Variables, index: Mapping[str, jax.Array]) -> Variables:
    """Return the slices [..., k] of the variables in `index`; pure."""
    return {path: jnp.asarray(variables[path])[..., channels] for path, channels in index.items()}


def scatter_channels(variables: Variables, slices: Variables, index: Mapping[str, jax.Array]) -> Variables:
    """Return the variables with `slices` written into their channels and all other bits unchanged.

    Pure and differentiable.
    """
    # With sorted and unique indices the derivative is a plain gather.
    hints: dict[str, Any] = {"indices_are_sorted": True, "unique_indices": True}
    updated = {
        path: jnp.asarray(variables[path]).at[..., index[path]].set(values, **hints) for path, values in slices.items()
    }
    return {**variables, **updated}


def attach_channels(model: nnx.Module, slices: Variables, index: Mapping[str, jax.Array]) -> None:
    """Make the layers of a model train only the kernel slices in `slices`; changes the modules in place.

    The model's parameters must contain the slices already, by `scatter`. Gradients reach kernel slices directly, and
    slices of vectors and of grouped kernels through `scatter`.
    """
    for path, values in slices.items():
        *layer, name = path.split("/")
        module = functools.reduce(getattr, layer, model)
        if name == "kernel" and isinstance(module, PartiallyTrainable):
            module.train_channels(TrainableChannels(values, jnp.asarray(index[path])))


def _matches(pattern: str, layer: str) -> bool:
    return any(re.fullmatch(pattern, path) for path in (layer, f"{layer}/kernel"))


def _num_selected(total: int, config: NeuronsConfig, layer: str) -> int:
    if config.count is None:
        return max(1, round(config.fraction * total))
    if config.count > total:
        raise UserError(f"neurons.count ({config.count}) is more than the {total} neurons of {layer}.")
    return config.count


def _top_indices(scores: np.ndarray, count: int) -> np.ndarray:
    return np.sort(np.argsort(-scores, kind="stable")[:count]).astype(np.int32)
