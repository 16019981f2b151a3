"""Predictions for a whole split."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from tljax.data.dataset import Images
from tljax.distributed.mesh import DeviceMesh
from tljax.features.extract import map_batches


def predict_batches(
    predict: Callable, variables: Any, arrays: Mapping[str, Images], batch_size: int, mesh: DeviceMesh
) -> dict[str, np.ndarray]:
    """Return the predictions for all images, {name: [N, ...]}.

    Args:
      predict: compiled function (variables, batch) → {name: [B, ...]}.
      variables: variables of the model, on the devices, as `predict` takes them.
      arrays: uint8 `image` [N, H, W, C] or cached features of the first stages, and the targets of the task if
        predictions are compared with them.
      batch_size: number of images per batch.
      mesh: devices that share a batch.
    """
    size = len(next(iter(arrays.values())))
    batch = {name: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype) for name, x in arrays.items()}
    shapes = jax.eval_shape(predict, variables, batch)
    predictions = {name: np.empty((size, *x.shape[1:]), x.dtype) for name, x in shapes.items()}
    map_batches(lambda batch: predict(variables, batch), arrays, batch_size, mesh, predictions)
    return predictions
