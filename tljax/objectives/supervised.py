"""Objectives of labelled pictures."""

from __future__ import annotations

import jax
import optax

from tljax.objectives.objective import Batch, Hyper, Outputs, Reference, objective, total, widen


@objective()
def cross_entropy(outputs: Outputs, batch: Batch, reference: Reference, hyper: Hyper) -> jax.Array:
    """Mean cross-entropy against smoothed labels, in nats (Szegedy et al. 2016, section 7, arXiv:1512.00567)."""
    return _smoothed(outputs["logits"], batch, hyper)


@objective()
def aux_cross_entropy(outputs: Outputs, batch: Batch, reference: Reference, hyper: Hyper) -> jax.Array:
    """The sum of `cross_entropy` over the auxiliary classifiers `aux1`, ... (Szegedy et al. 2015, arXiv:1409.4842)."""
    return total(_smoothed(logits, batch, hyper) for name, logits in outputs.items() if name.startswith("aux"))


@objective("source_output")
def source_cross_entropy(outputs: Outputs, batch: Batch, reference: Reference, hyper: Hyper) -> jax.Array:
    """`cross_entropy` of the second classifier; the labels are then of the source's classes."""
    return _smoothed(outputs["source"], batch, hyper)


def _smoothed(logits: jax.Array, batch: Batch, hyper: Hyper) -> jax.Array:
    logits = widen(logits)
    labels = jax.nn.one_hot(batch["label"], logits.shape[-1], dtype=logits.dtype)
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(labels, hyper["label_smoothing"])).mean()
