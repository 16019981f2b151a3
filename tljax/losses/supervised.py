"""Objectives of labelled pictures, and of pictures whose pixels are labelled."""

from __future__ import annotations

import jax

from tljax.losses import pixelwise
from tljax.losses.base import Batch, HParams, Outputs, References, loss, sum_or_zero


@loss()
def cross_entropy(outputs: Outputs, batch: Batch, reference: References, hyper: HParams) -> jax.Array:
    """Mean cross-entropy against smoothed labels, in nats (Szegedy et al. 2016, section 7, arXiv:1512.00567).

    Of pictures, or of the pixels that count; with `class_weights` a weighted mean.
    """
    return _smoothed(outputs["logits"], batch, hyper, hyper.get("class_weights"))


@loss()
def aux_cross_entropy(outputs: Outputs, batch: Batch, reference: References, hyper: HParams) -> jax.Array:
    """The sum of `cross_entropy` over the auxiliary classifiers `aux1`, ... (Szegedy et al. 2015, arXiv:1409.4842)."""
    return sum_or_zero(_smoothed(logits, batch, hyper) for name, logits in outputs.items() if name.startswith("aux"))


@loss("source_output")
def source_cross_entropy(outputs: Outputs, batch: Batch, reference: References, hyper: HParams) -> jax.Array:
    """`cross_entropy` of the second classifier; the labels are then of the source's classes."""
    return _smoothed(outputs["source"], batch, hyper)


def _smoothed(logits: jax.Array, batch: Batch, hyper: HParams, weights: jax.Array | None = None) -> jax.Array:
    labels, smoothing = batch["label"], hyper["label_smoothing"]
    if labels.ndim > 1:
        return pixelwise.cross_entropy(pixelwise.resize_logits(logits, labels.shape[1:]), labels, weights, smoothing)
    return pixelwise.cross_entropy(logits, labels, weights, smoothing)
