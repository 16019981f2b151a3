"""Predictions over a split."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from tljax.data import Split
from tljax.data.loader import eval_batches
from tljax.models.state import Leaves
from tljax.train.sharding import Mesh


def predict_split(predict: Callable, leaves: Leaves, split: Split, batch_size: int, mesh: Mesh) -> np.ndarray:
    """Probabilities of every picture, float64 [N, classes], rows summing to one.

    Args:
      predict: from `make_predict`.
      leaves: of the model, on the mesh.
      split: uint8 pictures.
      batch_size: pictures at a time; the last batch is padded, and the padding dropped.
      mesh: over which batches are split.
    """
    # All batches are dispatched before the first result is fetched; results are small.
    results = [
        (predict(leaves, mesh.put_batch(batch["image"])), int(batch["mask"].sum()))
        for batch in eval_batches(split, batch_size)
    ]
    rows = np.concatenate([jax.device_get(p)[:real] for p, real in results]).astype(np.float64)
    return rows / rows.sum(1, keepdims=True)
