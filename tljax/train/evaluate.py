"""Predictions over a split."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from tljax.models.state import Leaves
from tljax.train.features import over_rows
from tljax.train.sharding import Mesh


def predict_rows(
    predict: Callable,
    leaves: Leaves,
    arrays: Mapping[str, np.ndarray],
    row: tuple[int, ...],
    batch_size: int,
    mesh: Mesh,
) -> np.ndarray:
    """Probabilities of every picture, float64 [N, *row], summing to one over the last axis.

    Args:
      predict: from `make_predict`.
      leaves: of the model, on the mesh.
      arrays: uint8 `image` of every picture, or the maps of first stages that are known already.
      row: [classes], or [replicas, classes].
      batch_size: pictures at a time.
      mesh: over which batches are split.
    """
    rows = np.empty((len(next(iter(arrays.values()))), *row), np.float64)
    over_rows(lambda batch: {"": predict(leaves, batch)}, arrays, batch_size, mesh, {"": rows})
    return rows / rows.sum(-1, keepdims=True)
