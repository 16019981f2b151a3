"""Losses for unlabelled images."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from tljax.losses.base import Batch, HParams, Outputs, References, at_least_f32, loss
from tljax.losses.detection import decode, detection
from tljax.losses.distillation import expected_objects


@loss("weak")
def pseudo_label(outputs: Outputs, batch: Batch, references: References, hparams: HParams) -> jax.Array:
    """Cross-entropy against the student's own confident predictions (Lee 2013, ICML workshop).

    "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks". In nats; see
    `_self_training`.
    """
    return _self_training(outputs["weak"], outputs["weak"], hparams)


@loss("weak", "strong")
def fixmatch(outputs: Outputs, batch: Batch, references: References, hparams: HParams) -> jax.Array:
    """Cross-entropy of strong views against confident predictions for weak views (Sohn et al. 2020, arXiv:2001.07685).

    In nats; see `_self_training`. The paper has no warm-up.
    """
    return _self_training(outputs["strong"], outputs["weak"], hparams)


@loss("weak", "ema")
def mean_teacher(outputs: Outputs, batch: Batch, references: References, hparams: HParams) -> jax.Array:
    """Distance from the predictions of the averaged weights (Tarvainen & Valpola 2017, arXiv:1703.01780).

    The squared difference of probabilities, mean over images and classes (segmentation: and locations), times
    exp(-5 (1 - r)²), where r rises from 0 to 1 during the warm-up. Detection: nearly all locations are background, so
    the mean over classes is summed over locations and divided by the `expected_objects` of the averaged weights.
    """
    is_detection = "boxes" in outputs["weak"]
    activation = jax.nn.sigmoid if is_detection else jax.nn.softmax
    student = activation(at_least_f32(outputs["weak"]["logits"]))
    teacher = activation(at_least_f32(references["ema"]["logits"]))
    distance = jnp.square(student - teacher)
    distance = distance.mean(-1).sum() / expected_objects(teacher) if is_detection else distance.mean()
    return jnp.exp(-5 * (1 - _warmup(hparams)) ** 2) * distance


def _self_training(view: Outputs, weak: Outputs, hparams: HParams) -> jax.Array:
    """Return the loss of a view against pseudo-labels from the weak view, times the linear warm-up.

    No gradient flows through the pseudo-labels. The cross-entropy is averaged over all images (segmentation:
    locations); those below the threshold count as zero, so that the loss grows as more of them pass. Detection: boxes
    predicted on the weak view with scores of at least the threshold are the labels of `detection` (STAC, Sohn et al.
    2020, arXiv:2005.04757), and `distribution_alignment` is not used.

    Args:
      view: outputs for the view that is trained.
      weak: outputs for the weak view.
      hparams: with `threshold`, `distribution_alignment`, `prior`, `progress`, `unlabelled_warmup`.
    """
    if "boxes" in view:
        return _warmup(hparams) * detection.function(view, pseudo_boxes(weak, hparams), {}, hparams)
    targets = pseudo_targets(weak["logits"], hparams)
    confident = targets.max(-1) >= hparams["threshold"]
    losses = optax.softmax_cross_entropy_with_integer_labels(at_least_f32(view["logits"]), targets.argmax(-1))
    return _warmup(hparams) * jnp.where(confident, losses, 0).mean()


def pseudo_boxes(weak: Outputs, hparams: HParams) -> Batch:
    """Return a detector's confident boxes in the form of a batch's targets; no gradient flows through them."""
    detections = decode(jax.lax.stop_gradient(weak))
    labels = jnp.where(detections.scores >= hparams["threshold"], detections.classes, -1)
    return {"boxes": detections.boxes, "label": labels}


def pseudo_targets(logits: jax.Array, hparams: HParams) -> jax.Array:
    """Return the probabilities [..., C] that pseudo-labels are taken from; no gradient flows through them.

    With `distribution_alignment`, p times `prior` over the mean of p, normalized again: the distribution alignment of
    ReMixMatch (Berthelot et al. 2020, arXiv:1911.09785), with the mean over the batch's unlabelled images in place of a
    running mean.
    """
    # In log space: a class with probability 0 for all images would give 0 / 0.
    log_p = jax.nn.log_softmax(jax.lax.stop_gradient(at_least_f32(logits)))
    rows = log_p.reshape(-1, log_p.shape[-1])
    log_mean = jax.nn.logsumexp(rows, axis=0) - jnp.log(len(rows))
    shift = jnp.log(jnp.asarray(hparams["prior"], log_p.dtype)) - log_mean
    return jax.nn.softmax(jnp.where(jnp.asarray(hparams["distribution_alignment"]) > 0, log_p + shift, log_p))


def _warmup(hparams: HParams) -> jax.Array:
    """Return the completed share of the warm-up: linear from 0 to 1, or always 1 if its length is 0."""
    progress = jnp.asarray(hparams["progress"])
    length = jnp.asarray(hparams["unlabelled_warmup"])
    # The inner `where` avoids 0 / 0 in the branch that is not taken, whose gradient would be NaN.
    return jnp.where(length > 0, jnp.minimum(progress / jnp.where(length > 0, length, 1), 1), 1)
