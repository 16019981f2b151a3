"""Objectives of pictures without labels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from tljax.objectives.objective import Batch, Hyper, Outputs, Reference, objective, widen


@objective("weak")
def pseudo_label(outputs: Outputs, batch: Batch, reference: Reference, hyper: Hyper) -> jax.Array:
    """Cross-entropy against the student's own confident answers (Lee 2013, ICML workshop on representation learning).

    In nats; see `_self_training`.
    """
    return _self_training(outputs["weak"]["logits"], outputs, hyper)


@objective("weak", "strong")
def fixmatch(outputs: Outputs, batch: Batch, reference: Reference, hyper: Hyper) -> jax.Array:
    """Cross-entropy of the strong views against confident answers to the weak (Sohn et al. 2020, arXiv:2001.07685).

    In nats; see `_self_training`. The paper has no ramp.
    """
    return _self_training(outputs["strong"]["logits"], outputs, hyper)


@objective("weak", "average")
def mean_teacher(outputs: Outputs, batch: Batch, reference: Reference, hyper: Hyper) -> jax.Array:
    """Distance from the answers of the averaged weights (Tarvainen & Valpola 2017, arXiv:1703.01780).

    Mean over pictures and classes of the squared difference of probabilities, times exp(-5 (1 - r)²), where r rises
    from 0 to 1 over the ramp.
    """
    own, theirs = (jax.nn.softmax(widen(x["logits"])) for x in (outputs["weak"], reference["average"]))
    return jnp.exp(-5 * (1 - _ramp(hyper)) ** 2) * jnp.square(own - theirs).mean()


def _self_training(logits: jax.Array, outputs: Outputs, hyper: Hyper) -> jax.Array:
    """Cross-entropy of logits [U, C] against pseudo-labels, which have no gradient, times the linear ramp.

    The mean is over all unlabelled pictures: those below the threshold count as zero, so that the weight grows as more
    of them pass.
    """
    targets = pseudo_targets(outputs["weak"]["logits"], hyper)
    confident = targets.max(-1) >= hyper["threshold"]
    losses = optax.softmax_cross_entropy_with_integer_labels(widen(logits), targets.argmax(-1))
    return _ramp(hyper) * jnp.where(confident, losses, 0).mean()


def pseudo_targets(logits: jax.Array, hyper: Hyper) -> jax.Array:
    """The probabilities [U, C] that pseudo-labels are read off; no gradient flows through them.

    With `balance`, p times `prior` over the mean of p, normalised again: the distribution alignment of ReMixMatch
    (Berthelot et al. 2020, arXiv:1911.09785), with the mean over the batch's unlabelled pictures for the running one.
    """
    # In logarithms, where a class that no picture has any probability of gives no 0 / 0.
    log_p = jax.nn.log_softmax(jax.lax.stop_gradient(widen(logits)))
    log_mean = jax.nn.logsumexp(log_p, axis=0) - jnp.log(len(log_p))
    shift = jnp.log(jnp.asarray(hyper["prior"], log_p.dtype)) - log_mean
    return jax.nn.softmax(jnp.where(jnp.asarray(hyper["balance"]) > 0, log_p + shift, log_p))


def _ramp(hyper: Hyper) -> jax.Array:
    """The share of the ramp that is done: rises linearly from 0, and is 1 at its end, or at once if it is 0."""
    progress, ramp = jnp.asarray(hyper["progress"]), jnp.asarray(hyper["ramp"])
    # Never divides by zero, not even in the branch that is not taken: its gradient would be NaN.
    return jnp.where(ramp > 0, jnp.minimum(progress / jnp.where(ramp > 0, ramp, 1), 1), 1)
