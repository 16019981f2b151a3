"""Objectives that hold the student to other networks: its teachers, or the source that it started from."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import jax.scipy.special
import optax

from tljax.errors import UserError
from tljax.losses.base import Batch, HParams, Outputs, References, at_least_f32, half_sq_norm, loss, sum_or_zero
from tljax.losses.pixelwise import resize_logits


@loss("teachers", "teacher_logits")
def distillation(outputs: Outputs, batch: Batch, reference: References, hyper: HParams) -> jax.Array:
    """Divergence of the student's soft labels from the teachers' (Hinton et al. 2015, arXiv:1503.02531).

    T² KL(p || softmax(student / T)), mean over the batch, in nats, where p is the mean of softmax(teacher / T) over the
    teachers. With the factor T² gradients keep their size when the temperature changes. Of masks, the mean is over all
    places of the student's map, to which a teacher's is resized. A detector's classes are not exclusive: there it is
    the sum over classes of the divergences of sigmoids, summed over places, divided by how many objects the teachers
    see (`soft_objects`); boxes are not compared.
    """
    temperature, teachers = hyper["temperature"], reference["teachers"]
    own = at_least_f32(outputs["logits"])
    each = jnp.stack([_match_resolution(own, at_least_f32(teacher["logits"])) / temperature for teacher in teachers])
    if "boxes" in outputs:
        chances = jax.nn.sigmoid(each).mean(0)
        divergence = optax.sigmoid_binary_cross_entropy(own / temperature, chances) - _binary_entropy(chances)
        return temperature**2 * divergence.sum() / expected_objects(jax.nn.sigmoid(each * temperature).mean(0))
    theirs = jax.nn.logsumexp(jax.nn.log_softmax(each), axis=0) - jnp.log(len(teachers))
    own = jax.nn.log_softmax(own / temperature)
    return temperature**2 * (jnp.exp(theirs) * (theirs - own)).sum(-1).mean()


@loss("teachers", "teacher_maps")
def attention_transfer(outputs: Outputs, batch: Batch, reference: References, hyper: HParams) -> jax.Array:
    """Distance of the student's attention maps from the teachers' (Zagoruyko & Komodakis 2017, arXiv:1612.03928).

    A map's attention is the mean of its squares over channels, divided by its norm over all places. Mean over batch and
    places of the squared difference, summed over the pairs of stages, averaged over teachers: the activation-based
    form, scaled as in the authors' code. A teacher's attention of another height or width is first resized to the
    student's, bilinearly and antialiased.
    """
    return sum_or_zero(
        jnp.square(_unit(own) - _unit(_resize_like(_energy(map_), own))).mean()
        for teacher in reference["teachers"]
        for stage, map_ in teacher["maps"].items()
        for own in [_energy(outputs["maps"][stage])]
    ) / len(reference["teachers"])


@loss("teachers", "teacher_maps", "hints")
def hints(outputs: Outputs, batch: Batch, reference: References, hyper: HParams) -> jax.Array:
    """Mean squared error of the student's regressed maps against the teacher's (Romero et al. 2015, arXiv:1412.6550).

    Mean over batch, places and channels, summed over the stages that have a regressor. A teacher's map of another
    height or width is first resized to the student's, bilinearly and antialiased.

    Raises:
      UserError: two or more teachers, as the regressors lead to the channels of one.
    """
    if len(reference["teachers"]) != 1:
        raise UserError(f"hints follow the maps of one teacher, got {len(reference['teachers'])} teachers.")
    (teacher,) = reference["teachers"]
    return sum_or_zero(
        jnp.square(own - _resize_like(at_least_f32(map_), own)).mean()
        for stage, map_ in teacher["maps"].items()
        if f"hint_{stage}" in outputs
        for own in [at_least_f32(outputs[f"hint_{stage}"])]
    )


@loss("source_maps")
def delta(outputs: Outputs, batch: Batch, reference: References, hyper: HParams) -> jax.Array:
    """Half the squared distance of the maps from the source's (Li et al. 2019, arXiv:1901.09229), without attention.

    Summed over stages, places and channels, and averaged over the pictures of the batch, so that its weight against the
    other terms, which are means, does not hang on the batch size. Implementations that sum over the batch too have the
    same loss with this one's weight divided by their batch size.
    """
    maps = reference["source"]["maps"]
    return sum_or_zero(
        half_sq_norm(at_least_f32(outputs["maps"][s]) - at_least_f32(m)) / len(m) for s, m in maps.items()
    )


@loss("source_logits", "source_output")
def lwf(outputs: Outputs, batch: Batch, reference: References, hyper: HParams) -> jax.Array:
    """What the second classifier forgot of the source's answers (Li & Hoiem 2017, arXiv:1606.09282).

    Cross-entropy of softmax(own / T) against softmax(source / T), mean over the batch, in nats; as in the paper, which
    takes T = 2, there is no factor T². Of masks and boxes as in `distillation`.
    """
    temperature, source = hyper["temperature"], outputs["source"]
    own = at_least_f32(source["logits"] if isinstance(source, Mapping) else source)
    theirs = _match_resolution(own, at_least_f32(reference["source"]["logits"]))
    if isinstance(source, Mapping):
        chances = jax.nn.sigmoid(theirs / temperature)
        losses = optax.sigmoid_binary_cross_entropy(own / temperature, chances)
        return losses.sum() / expected_objects(jax.nn.sigmoid(theirs))
    return optax.softmax_cross_entropy(own / temperature, jax.nn.softmax(theirs / temperature)).mean()


def expected_objects(chances: jax.Array) -> jax.Array:
    """How many objects chances [..., P, C] of classes at places stand for, at least 1: what losses are divided by."""
    return jnp.maximum(1, chances.max(-1).sum())


def _match_resolution(features: jax.Array, target: jax.Array) -> jax.Array:
    """Another network's logits, at the places of the student's: maps are resized."""
    if features.ndim == 4:
        return resize_logits(target, features.shape[1:3])
    if features.shape != target.shape:
        raise UserError(
            f"The teacher predicts at {target.shape[-2]} locations of an image, the student at {features.shape[-2]}: "
            "give both detectors the same strides (model.head_options)."
        )
    return target


def _binary_entropy(chances: jax.Array) -> jax.Array:
    return -(jax.scipy.special.xlogy(chances, chances) + jax.scipy.special.xlog1py(1 - chances, -chances))


def _energy(x: jax.Array) -> jax.Array:
    """Mean square over channels: [B, h, w, c] → [B, h, w, 1]."""
    return jnp.square(at_least_f32(x)).mean(-1, keepdims=True)


def _unit(x: jax.Array) -> jax.Array:
    """Divided by the norm over places, or by 1e-12 where that is less; a map of zeros has gradient zero, not NaN."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum((1, 2, 3), keepdims=True), 1e-24))


def _resize_like(x: jax.Array, like: jax.Array) -> jax.Array:
    """A map in the height and width of another: [B, h', w', c] → [B, h, w, c]."""
    shape = (len(x), *like.shape[1:3], x.shape[-1])
    return x if x.shape == shape else jax.image.resize(x, shape, "bilinear", antialias=True)
