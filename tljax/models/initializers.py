"""Random initial weights, drawn with NumPy on the host, which needs no compilation.

The value of a parameter depends only on the random key and its path, not on the order of construction or on the other
parameters. So a head has the same initial weights for every `out_stage` and strategy.
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

from tljax.errors import UserError
from tljax.models.params import flatten_state


def he_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draw from a normal of variance 2 / fan-out for a kernel [k, k, in, out] (He et al. 2015), as in torchvision."""
    fan_out = math.prod(shape[:-2]) * shape[-1]
    return rng.normal(0, math.sqrt(2 / fan_out), shape)


def glorot_uniform(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draw uniformly from ±√(6 / (fan-in + fan-out)) for a kernel [in, out] (Glorot & Bengio 2010), as in Keras."""
    limit = math.sqrt(6 / sum(shape))
    return rng.uniform(-limit, limit, shape)


def zeros(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return zeros."""
    return np.zeros(shape)


def ones(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return ones."""
    return np.ones(shape)


def layer_scale(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return 1e-6 everywhere (Touvron et al. 2021, arXiv:2103.17239), so that a block starts close to the identity."""
    return np.full(shape, 1e-6)


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draw from a normal of deviation 0.02 as in ConvNeXt, where truncation at 100 deviations has no effect."""
    return rng.normal(0, 0.02, shape)


def bilinear(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return bilinear interpolation of each channel, for a transposed convolution [2 · stride, 2 · stride, in, out]."""
    size = shape[0]
    weights = 1 - np.abs(np.arange(size) - (size - 1) / 2) * 2 / size
    return np.multiply.outer(np.multiply.outer(weights, weights), np.eye(shape[2], shape[3]))


Initializer = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]

# (last part of the path, rank) → initializer; rank None matches every rank.
INITIALIZERS: dict[tuple[str, int | None], Initializer] = {
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
    family_initializers: Mapping[tuple[str, int | None], Initializer] = MappingProxyType({}),
    by_path: Mapping[str, Initializer] = MappingProxyType({}),
) -> None:
    """Initialize, in place, every parameter and statistic of a model that has no value yet.

    Args:
      model: from `create_model`; variables that have values, such as pretrained weights, are not changed.
      key: the random key.
      family_initializers: the family's initializers, which override rows of `INITIALIZERS`.
      by_path: pattern of the whole path → initializer; overrides both tables.
    """
    seed = np.asarray(jax.random.key_data(key)).ravel().tolist()
    table = {**INITIALIZERS, **family_initializers}
    for path, variable in flatten_state(nnx.state(model)).items():
        if not isinstance(variable.get_value(), jax.ShapeDtypeStruct):
            continue
        name = path.split("/")[-1]
        shape = variable.shape
        matching = next((initializer for pattern, initializer in by_path.items() if re.fullmatch(pattern, path)), None)
        initializer = matching or table.get((name, len(shape))) or table.get((name, None))
        if initializer is None:
            raise UserError(
                f'There is no initializer for {path} {list(shape)}: add ("{name}", {len(shape)}) to INITIALIZERS of '
                "the backbone's file, or override the property initializers of the head."
            )
        rng = np.random.default_rng([*seed, zlib.crc32(path.encode())])
        variable.set_value(jax.numpy.asarray(initializer(rng, shape).astype(variable.dtype)))
