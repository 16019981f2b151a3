"""Objectives of pictures with a class for each pixel; `pixels` has the losses.

The logits are brought to the grid of the labels first.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tljax.losses import pixelwise
from tljax.losses.base import Batch, HParams, Outputs, References, loss


@loss("masks")
def dice(outputs: Outputs, batch: Batch, reference: References, hyper: HParams) -> jax.Array:
    """One minus the soft Dice coefficient, mean over classes (Milletari et al. 2016, arXiv:1606.04797)."""
    return pixelwise.dice(*_on_labels(outputs, batch))


@loss("masks")
def focal(outputs: Outputs, batch: Batch, reference: References, hyper: HParams) -> jax.Array:
    """Cross-entropy that counts less where it is small, with the paper's gamma of 2 (Lin et al. 2017).

    arXiv:1708.02002.
    """
    return pixelwise.focal(*_on_labels(outputs, batch))


@loss("masks")
def lovasz(outputs: Outputs, batch: Batch, reference: References, hyper: HParams) -> jax.Array:
    """The Lovász-Softmax loss, a surrogate of the mean IoU (Berman et al. 2018, arXiv:1705.08790)."""
    return pixelwise.lovasz(*_on_labels(outputs, batch))


@loss("masks", "boundary_weights")
def boundary_cross_entropy(outputs: Outputs, batch: Batch, reference: References, hyper: HParams) -> jax.Array:
    """Cross-entropy that weighs gaps between objects more, in nats (Ronneberger et al. 2015, equations 1 and 2).

    arXiv:1505.04597. A pixel's weight is that of its class and what `weight_maps.boundary_weights` adds; the mean is
    over the pixels that count, where the paper has the sum.
    """
    logits, labels = _on_labels(outputs, batch)
    of_class = hyper.get("class_weights")
    # What does not count takes the weight of any class.
    weights = 1.0 if of_class is None else jnp.take(of_class, labels, mode="clip")
    return pixelwise.weighted_cross_entropy(logits, labels, weights + batch["weight"])


def _on_labels(outputs: Outputs, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Logits [B, H, W, C] and labels [B, H, W]."""
    labels = batch["label"]
    return pixelwise.resize_logits(outputs["logits"], labels.shape[1:]), labels
