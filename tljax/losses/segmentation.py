"""Segmentation losses: those of `pixelwise`, after resizing the logits to the resolution of the labels."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tljax.losses import pixelwise
from tljax.losses.base import Batch, HParams, Outputs, References, loss


@loss("masks")
def dice(outputs: Outputs, batch: Batch, references: References, hparams: HParams) -> jax.Array:
    """One minus the soft Dice coefficient, mean over classes (Milletari et al. 2016, arXiv:1606.04797)."""
    return pixelwise.dice(*_resized_logits_and_labels(outputs, batch))


@loss("masks")
def focal(outputs: Outputs, batch: Batch, references: References, hparams: HParams) -> jax.Array:
    """Focal loss: cross-entropy that down-weights easy pixels, with gamma = 2 (Lin et al. 2017, arXiv:1708.02002)."""
    return pixelwise.focal(*_resized_logits_and_labels(outputs, batch))


@loss("masks")
def lovasz(outputs: Outputs, batch: Batch, references: References, hparams: HParams) -> jax.Array:
    """The Lovász-Softmax loss, a surrogate of the mean IoU (Berman et al. 2018, arXiv:1705.08790)."""
    return pixelwise.lovasz(*_resized_logits_and_labels(outputs, batch))


@loss("masks", "boundary_weights")
def boundary_cross_entropy(outputs: Outputs, batch: Batch, references: References, hparams: HParams) -> jax.Array:
    """Cross-entropy with larger weights in gaps between objects, in nats (Ronneberger et al. 2015, eq. 1 and 2).

    arXiv:1505.04597. A pixel's weight is its class weight plus `weight_maps.boundary_weights`. This is the mean over
    the pixels that are not ignored, where the paper has the sum.
    """
    logits, labels = _resized_logits_and_labels(outputs, batch)
    class_weights = hparams.get("class_weights")
    # "clip" gives ignored pixels the weight of an arbitrary class; their loss is masked.
    weights = 1.0 if class_weights is None else jnp.take(class_weights, labels, mode="clip")
    return pixelwise.weighted_cross_entropy(logits, labels, weights + batch["weight"])


def _resized_logits_and_labels(outputs: Outputs, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Return logits [B, H, W, C] and labels [B, H, W]."""
    labels = batch["label"]
    return pixelwise.resize_logits(outputs["logits"], labels.shape[1:]), labels
