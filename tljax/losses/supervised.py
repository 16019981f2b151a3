"""Cross-entropy losses for labelled images and labelled pixels."""

from __future__ import annotations

import jax

from tljax.losses import pixelwise
from tljax.losses.base import Batch, HParams, Outputs, References, loss, sum_or_zero


@loss()
def cross_entropy(outputs: Outputs, batch: Batch, references: References, hparams: HParams) -> jax.Array:
    """Mean cross-entropy against smoothed labels, in nats (Szegedy et al. 2016, section 7, arXiv:1512.00567).

    Over images, or over the pixels that are not ignored; a weighted mean if `hparams` has `class_weights`.
    """
    return _cross_entropy(outputs["logits"], batch, hparams, hparams.get("class_weights"))


@loss()
def aux_cross_entropy(outputs: Outputs, batch: Batch, references: References, hparams: HParams) -> jax.Array:
    """The sum of `cross_entropy` over the auxiliary classifiers `aux1`, ... (Szegedy et al. 2015, arXiv:1409.4842)."""
    return sum_or_zero(
        _cross_entropy(logits, batch, hparams) for name, logits in outputs.items() if name.startswith("aux")
    )


@loss("source_output")
def source_cross_entropy(outputs: Outputs, batch: Batch, references: References, hparams: HParams) -> jax.Array:
    """`cross_entropy` of the second classifier, against labels of the source's classes."""
    return _cross_entropy(outputs["source"], batch, hparams)


def _cross_entropy(
    logits: jax.Array, batch: Batch, hparams: HParams, class_weights: jax.Array | None = None
) -> jax.Array:
    labels = batch["label"]
    if labels.ndim > 1:
        logits = pixelwise.resize_logits(logits, labels.shape[1:])
    return pixelwise.cross_entropy(logits, labels, class_weights, hparams["label_smoothing"])
