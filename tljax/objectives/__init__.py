"""Objectives: pure functions of outputs, batch and hyper-parameters that a phase adds up to its loss."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import optax

Outputs = Batch = Hyper = Mapping[str, jax.Array]


def cross_entropy(outputs: Outputs, batch: Batch, hyper: Hyper) -> jax.Array:
    """Mean cross-entropy against smoothed labels (Szegedy et al. 2016, section 7, arXiv:1512.00567).

    Args:
      outputs: `logits` [B, classes].
      batch: `label` [B], integers.
      hyper: `label_smoothing`, the share of the target spread evenly over all classes.

    Returns:
      Scalar, in nats.
    """
    logits = outputs["logits"]
    targets = optax.smooth_labels(jax.nn.one_hot(batch["label"], logits.shape[-1]), hyper["label_smoothing"])
    return optax.softmax_cross_entropy(logits, targets).mean()


def aux_cross_entropy(outputs: Outputs, batch: Batch, hyper: Hyper) -> jax.Array:
    """The sum of `cross_entropy` over the auxiliary classifiers `aux1`, ... (Szegedy et al. 2015, arXiv:1409.4842)."""
    auxiliary = [logits for name, logits in outputs.items() if name.startswith("aux")]
    return sum(cross_entropy({"logits": logits}, batch, hyper) for logits in auxiliary)


OBJECTIVES = {f.__name__: f for f in (cross_entropy, aux_cross_entropy)}
