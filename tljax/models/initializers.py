"""Random initial weights, drawn on the host.

A leaf's value depends on the key and its path alone, not on the order of construction or on which other leaves there
are: a head starts the same on every tap and under every strategy. Nothing is compiled for it.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import numpy as np
from flax import nnx

from tljax.models.params import flatten_state


def he_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Normal of variance 2 / fan-out for a kernel [k, k, in, out] (He et al. 2015), as in torchvision."""
    fan_out = math.prod(shape[:-2]) * shape[-1]
    return rng.normal(0, math.sqrt(2 / fan_out), shape)


def glorot_uniform(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform in ±√(6 / (fan-in + fan-out)) for a kernel [in, out] (Glorot & Bengio 2010), as in Keras."""
    limit = math.sqrt(6 / sum(shape))
    return rng.uniform(-limit, limit, shape)


def zeros(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Zeros."""
    return np.zeros(shape)


def ones(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Ones."""
    return np.ones(shape)


def layer_scale(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """One millionth (Touvron et al. 2021, arXiv:2103.17239): a block starts as the identity."""
    return np.full(shape, 1e-6)


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Normal of deviation 0.02, as in ConvNeXt (whose truncation, at 100 deviations, cuts nothing)."""
    return rng.normal(0, 0.02, shape)


def bilinear(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Interpolation of each channel alone, for a transposed convolution's kernel [2 · stride, 2 · stride, in, out]."""
    size = shape[0]
    weights = 1 - np.abs(np.arange(size) - (size - 1) / 2) * 2 / size
    return np.multiply.outer(np.multiply.outer(weights, weights), np.eye(*shape[2:]))


# (last part of the path, rank) → initialiser; rank None stands for every rank.
INITIALISERS: dict[tuple[str, int | None], Callable] = {
    ("kernel", 4): he_normal,
    ("kernel", 2): glorot_uniform,
    ("bias", None): zeros,
    ("scale", None): ones,
    ("mean", None): zeros,
    ("var", None): ones,
    ("gamma", None): layer_scale,
}


def init_missing_params(
    model: nnx.Module,
    key: jax.Array,
    own: Mapping[tuple[str, int | None], Callable] = MappingProxyType({}),
    by_path: Mapping[str, Callable] = MappingProxyType({}),
) -> None:
    """Gives every leaf of a model that has no value yet its initial one, in place.

    Args:
      model: from `build`; leaves with values, as pretrained weights left them, stay.
      key: the seed.
      own: the family's own rows of the table, which come first.
      by_path: pattern of whole paths → initialiser; these come before any table.
    """
    words, table = np.asarray(jax.random.key_data(key)).ravel().tolist(), INITIALISERS | own
    for path, variable in flatten_state(nnx.state(model)).items():
        if not isinstance(variable.get_value(), jax.ShapeDtypeStruct):
            continue
        name, shape = path.split("/")[-1], variable.shape
        named = next((draw for pattern, draw in by_path.items() if re.fullmatch(pattern, path)), None)
        draw = named or table.get((name, len(shape))) or table[name, None]
        rng = np.random.default_rng([*words, zlib.crc32(path.encode())])
        variable.set_value(jax.numpy.asarray(draw(rng, shape).astype(variable.dtype)))
