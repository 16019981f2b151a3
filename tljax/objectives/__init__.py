"""Objectives: pure functions of outputs, batch and hyper-parameters that a phase adds up to its loss."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import optax


def cross_entropy(logits: jax.Array, batch: Mapping[str, jax.Array], hyper: Mapping[str, jax.Array]) -> jax.Array:
    """Mean cross-entropy against smoothed labels (Szegedy et al. 2016, section 7, arXiv:1512.00567).

    Args:
      logits: [B, classes].
      batch: `label` [B], integers.
      hyper: `label_smoothing`, the share of the target spread evenly over all classes.

    Returns:
      Scalar, in nats.
    """
    targets = optax.smooth_labels(jax.nn.one_hot(batch["label"], logits.shape[-1]), hyper["label_smoothing"])
    return optax.softmax_cross_entropy(logits, targets).mean()


OBJECTIVES = {"cross_entropy": cross_entropy}
