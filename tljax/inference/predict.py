"""Answers over a split."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import numpy as np

from tljax.distributed.mesh import DeviceMesh
from tljax.features.extract import map_batches
from tljax.models.params import Variables


def predict_batches(
    predict: Callable, variables: Variables, arrays: Mapping[str, np.ndarray], batch_size: int, mesh: DeviceMesh
) -> dict[str, np.ndarray]:
    """The answers to every picture, {name: [N, ...]}.

    Args:
      predict: from `make_predict`, or `make_predicts`.
      variables: of the model, on the mesh.
      arrays: uint8 `image` of every picture, or the maps of first stages that are known already; and the task's
        targets, where answers are to be compared with them.
      batch_size: pictures at a time.
      mesh: over which batches are split.
    """
    size = len(next(iter(arrays.values())))
    batch = {name: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype) for name, x in arrays.items()}
    shapes = jax.eval_shape(predict, variables, batch)
    rows = {name: np.empty((size, *x.shape[1:]), x.dtype) for name, x in shapes.items()}
    map_batches(lambda batch: predict(variables, batch), arrays, batch_size, mesh, rows)
    return rows
