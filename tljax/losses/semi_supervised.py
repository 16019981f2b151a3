"""Objectives of pictures without labels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from tljax.losses.base import Batch, HParams, Outputs, References, at_least_f32, loss
from tljax.losses.detection import decode, detection
from tljax.losses.distillation import expected_objects


@loss("weak")
def pseudo_label(outputs: Outputs, batch: Batch, reference: References, hyper: HParams) -> jax.Array:
    """Cross-entropy against the student's own confident answers (Lee 2013, ICML workshop on representation learning).

    In nats; see `_self_training`.
    """
    return _self_training(outputs["weak"], outputs, hyper)


@loss("weak", "strong")
def fixmatch(outputs: Outputs, batch: Batch, reference: References, hyper: HParams) -> jax.Array:
    """Cross-entropy of the strong views against confident answers to the weak (Sohn et al. 2020, arXiv:2001.07685).

    In nats; see `_self_training`. The paper has no ramp.
    """
    return _self_training(outputs["strong"], outputs, hyper)


@loss("weak", "average")
def mean_teacher(outputs: Outputs, batch: Batch, reference: References, hyper: HParams) -> jax.Array:
    """Distance from the answers of the averaged weights (Tarvainen & Valpola 2017, arXiv:1703.01780).

    Mean over pictures and classes, and of masks over places, of the squared difference of probabilities, times
    exp(-5 (1 - r)²), where r rises from 0 to 1 over the ramp. Of a detector, whose places hardly ever have an object,
    the sum over places of that mean, divided by how many objects the averaged weights see.
    """
    detects = "boxes" in outputs["weak"]
    chances = jax.nn.sigmoid if detects else jax.nn.softmax
    own, theirs = (chances(at_least_f32(x["logits"])) for x in (outputs["weak"], reference["average"]))
    apart = jnp.square(own - theirs)
    apart = apart.mean(-1).sum() / expected_objects(theirs) if detects else apart.mean()
    return jnp.exp(-5 * (1 - _warmup(hyper)) ** 2) * apart


def _self_training(view: Outputs, outputs: Outputs, hyper: HParams) -> jax.Array:
    """Loss of a view's outputs against pseudo-labels, which have no gradient, times the linear ramp.

    That is the cross-entropy of pictures, or of masks' places. The mean is over all of them: those below the threshold
    count as zero, so that the weight grows as more of them pass. Of a detector, boxes found on the weak view with
    scores of at least the threshold are labels for `detection` (STAC, Sohn et al. 2020, arXiv:2005.04757); there
    `balance` has no meaning.
    """
    if "boxes" in view:
        return _warmup(hyper) * detection.function(view, pseudo_boxes(outputs["weak"], hyper), {}, hyper)
    targets = pseudo_targets(outputs["weak"]["logits"], hyper)
    confident = targets.max(-1) >= hyper["threshold"]
    losses = optax.softmax_cross_entropy_with_integer_labels(at_least_f32(view["logits"]), targets.argmax(-1))
    return _warmup(hyper) * jnp.where(confident, losses, 0).mean()


def pseudo_boxes(weak: Outputs, hyper: HParams) -> Batch:
    """The boxes that a detector is confident of, as a batch has its true ones; no gradient flows through them."""
    found = decode(jax.lax.stop_gradient(weak))
    return {"boxes": found.boxes, "label": jnp.where(found.scores >= hyper["threshold"], found.classes, -1)}


def pseudo_targets(logits: jax.Array, hyper: HParams) -> jax.Array:
    """The probabilities [..., C] that pseudo-labels are read off; no gradient flows through them.

    With `balance`, p times `prior` over the mean of p, normalised again: the distribution alignment of ReMixMatch
    (Berthelot et al. 2020, arXiv:1911.09785), with the mean over the batch's unlabelled pictures for the running one.
    """
    # In logarithms, where a class that no picture has any probability of gives no 0 / 0.
    log_p = jax.nn.log_softmax(jax.lax.stop_gradient(at_least_f32(logits)))
    rows = log_p.reshape(-1, log_p.shape[-1])
    log_mean = jax.nn.logsumexp(rows, axis=0) - jnp.log(len(rows))
    shift = jnp.log(jnp.asarray(hyper["prior"], log_p.dtype)) - log_mean
    return jax.nn.softmax(jnp.where(jnp.asarray(hyper["balance"]) > 0, log_p + shift, log_p))


def _warmup(hyper: HParams) -> jax.Array:
    """The share of the ramp that is done: rises linearly from 0, and is 1 at its end, or at once if it is 0."""
    progress, ramp = jnp.asarray(hyper["progress"]), jnp.asarray(hyper["ramp"])
    # Never divides by zero, not even in the branch that is not taken: its gradient would be NaN.
    return jnp.where(ramp > 0, jnp.minimum(progress / jnp.where(ramp > 0, ramp, 1), 1), 1)
