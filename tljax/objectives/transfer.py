"""Objectives that hold the student to other networks: its teachers, or the source that it started from."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from tljax.errors import UserError
from tljax.objectives.objective import Batch, Hyper, Outputs, Reference, half_square, objective, total, widen


@objective("teachers", "teacher_logits")
def distillation(outputs: Outputs, batch: Batch, reference: Reference, hyper: Hyper) -> jax.Array:
    """Divergence of the student's soft labels from the teachers' (Hinton et al. 2015, arXiv:1503.02531).

    T² KL(p || softmax(student / T)), mean over the batch, in nats, where p is the mean of softmax(teacher / T) over the
    teachers. With the factor T² gradients keep their size when the temperature changes.
    """
    temperature, teachers = hyper["temperature"], reference["teachers"]
    each = jnp.stack([jax.nn.log_softmax(widen(teacher["logits"]) / temperature) for teacher in teachers])
    theirs = jax.nn.logsumexp(each, axis=0) - jnp.log(len(teachers))
    own = jax.nn.log_softmax(widen(outputs["logits"]) / temperature)
    return temperature**2 * (jnp.exp(theirs) * (theirs - own)).sum(-1).mean()


@objective("teachers", "teacher_maps")
def attention_transfer(outputs: Outputs, batch: Batch, reference: Reference, hyper: Hyper) -> jax.Array:
    """Distance of the student's attention maps from the teachers' (Zagoruyko & Komodakis 2017, arXiv:1612.03928).

    A map's attention is the mean of its squares over channels, divided by its norm over all places. Mean over batch and
    places of the squared difference, summed over the pairs of stages, averaged over teachers: the activation-based
    form, scaled as in the authors' code. A teacher's attention of another height or width is first resized to the
    student's, bilinearly and antialiased.
    """
    return total(
        jnp.square(_unit(own) - _unit(_resized(_energy(map_), own))).mean()
        for teacher in reference["teachers"]
        for stage, map_ in teacher["maps"].items()
        for own in [_energy(outputs["maps"][stage])]
    ) / len(reference["teachers"])


@objective("teachers", "teacher_maps", "hints")
def hints(outputs: Outputs, batch: Batch, reference: Reference, hyper: Hyper) -> jax.Array:
    """Mean squared error of the student's regressed maps against the teacher's (Romero et al. 2015, arXiv:1412.6550).

    Mean over batch, places and channels, summed over the stages that have a regressor. A teacher's map of another
    height or width is first resized to the student's, bilinearly and antialiased.

    Raises:
      UserError: two or more teachers, as the regressors lead to the channels of one.
    """
    if len(reference["teachers"]) != 1:
        raise UserError(f"hints follow the maps of one teacher, got {len(reference['teachers'])} teachers.")
    (teacher,) = reference["teachers"]
    return total(
        jnp.square(own - _resized(widen(map_), own)).mean()
        for stage, map_ in teacher["maps"].items()
        if f"hint_{stage}" in outputs
        for own in [widen(outputs[f"hint_{stage}"])]
    )


@objective("source_maps")
def delta(outputs: Outputs, batch: Batch, reference: Reference, hyper: Hyper) -> jax.Array:
    """Half the squared distance of the maps from the source's (Li et al. 2019, arXiv:1901.09229), without attention.

    Summed over stages, places and channels, and averaged over the pictures of the batch, so that its weight against the
    other terms, which are means, does not hang on the batch size. Implementations that sum over the batch too have the
    same loss with this one's weight divided by their batch size.
    """
    maps = reference["source"]["maps"]
    return total(half_square(widen(outputs["maps"][s]) - widen(m)) / len(m) for s, m in maps.items())


@objective("source_logits", "source_output")
def lwf(outputs: Outputs, batch: Batch, reference: Reference, hyper: Hyper) -> jax.Array:
    """What the second classifier forgot of the source's answers (Li & Hoiem 2017, arXiv:1606.09282).

    Cross-entropy of softmax(own / T) against softmax(source / T), mean over the batch, in nats; as in the paper, which
    takes T = 2, there is no factor T².
    """
    theirs = jax.nn.softmax(widen(reference["source"]["logits"]) / hyper["temperature"])
    return optax.softmax_cross_entropy(widen(outputs["source"]) / hyper["temperature"], theirs).mean()


def _energy(x: jax.Array) -> jax.Array:
    """Mean square over channels: [B, h, w, c] → [B, h, w, 1]."""
    return jnp.square(widen(x)).mean(-1, keepdims=True)


def _unit(x: jax.Array) -> jax.Array:
    """Divided by the norm over places, or by 1e-12 where that is less; a map of zeros has gradient zero, not NaN."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum((1, 2, 3), keepdims=True), 1e-24))


def _resized(x: jax.Array, like: jax.Array) -> jax.Array:
    """A map in the height and width of another: [B, h', w', c] → [B, h, w, c]."""
    shape = (len(x), *like.shape[1:3], x.shape[-1])
    return x if x.shape == shape else jax.image.resize(x, shape, "bilinear", antialias=True)
