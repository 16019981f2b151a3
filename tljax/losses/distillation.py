"""Losses that compare the student with frozen networks: its teachers, or the source network it started from."""

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
def distillation(outputs: Outputs, batch: Batch, references: References, hparams: HParams) -> jax.Array:
    """Divergence of the student's soft labels from the teachers' (Hinton et al. 2015, arXiv:1503.02531).

    T² KL(p || softmax(student / T)), mean over the batch, in nats, where p is the mean of softmax(teacher / T) over the
    teachers. The factor T² makes the size of the gradients independent of the temperature.

    Segmentation: the mean is over all locations of the student's logits, to which a teacher's are resized. Detection:
    classes are not exclusive, so the divergences of sigmoids are summed over classes and locations, and divided by the
    teachers' `expected_objects`; boxes are not compared.
    """
    temperature = hparams["temperature"]
    teachers = references["teachers"]
    student = at_least_f32(outputs["logits"])
    scaled = jnp.stack(
        [_match_resolution(student, at_least_f32(teacher["logits"])) / temperature for teacher in teachers]
    )
    if "boxes" in outputs:
        targets = jax.nn.sigmoid(scaled).mean(0)
        divergence = optax.sigmoid_binary_cross_entropy(student / temperature, targets) - _binary_entropy(targets)
        return temperature**2 * divergence.sum() / expected_objects(jax.nn.sigmoid(scaled * temperature).mean(0))
    log_p = jax.nn.logsumexp(jax.nn.log_softmax(scaled), axis=0) - jnp.log(len(teachers))
    log_q = jax.nn.log_softmax(student / temperature)
    return temperature**2 * (jnp.exp(log_p) * (log_p - log_q)).sum(-1).mean()


@loss("teachers", "teacher_maps")
def attention_transfer(outputs: Outputs, batch: Batch, references: References, hparams: HParams) -> jax.Array:
    """Distance between attention maps of student and teachers (Zagoruyko & Komodakis 2017, arXiv:1612.03928).

    An attention map is the mean of the squared features over channels, divided by its norm over all locations. The
    squared differences are averaged over batch and locations, summed over the pairs of stages and averaged over the
    teachers: the activation-based form, scaled as in the authors' code. A teacher's map of another height or width is
    first resized to the student's, bilinearly and antialiased.
    """
    teachers = references["teachers"]
    return sum_or_zero(
        jnp.square(_normalize(student) - _normalize(_resize_like(_mean_square(features), student))).mean()
        for teacher in teachers
        for stage, features in teacher["maps"].items()
        for student in [_mean_square(outputs["maps"][stage])]
    ) / len(teachers)


@loss("teachers", "teacher_maps", "hints")
def hints(outputs: Outputs, batch: Batch, references: References, hparams: HParams) -> jax.Array:
    """Mean squared error of the student's projected features and the teacher's (Romero et al. 2015, arXiv:1412.6550).

    Mean over batch, locations and channels, summed over the stages that have a projection. A teacher's feature map of
    another height or width is first resized to the student's, bilinearly and antialiased.

    Raises:
      UserError: two or more teachers: the projections have the channels of one.
    """
    if len(references["teachers"]) != 1:
        raise UserError(f"The loss hints takes exactly one teacher, got {len(references['teachers'])}.")
    (teacher,) = references["teachers"]
    return sum_or_zero(
        jnp.square(student - _resize_like(at_least_f32(features), student)).mean()
        for stage, features in teacher["maps"].items()
        if f"hint_{stage}" in outputs
        for student in [at_least_f32(outputs[f"hint_{stage}"])]
    )


@loss("source_maps")
def delta(outputs: Outputs, batch: Batch, references: References, hparams: HParams) -> jax.Array:
    """Half the squared distance of the feature maps from the source's, without attention (Li et al. 2019).

    arXiv:1901.09229. Summed over stages, locations and channels, and averaged over the batch, so that its weight
    relative to other terms, which are means, does not depend on the batch size. For implementations that also sum over
    the batch, divide the weight used here by the batch size.
    """
    student = outputs["maps"]
    source = references["source"]["maps"]
    return sum_or_zero(
        half_sq_norm(at_least_f32(student[stage]) - at_least_f32(features)) / len(features)
        for stage, features in source.items()
    )


@loss("source_logits", "source_output")
def lwf(outputs: Outputs, batch: Batch, references: References, hparams: HParams) -> jax.Array:
    """Learning without Forgetting: keep the second head close to the source network (Li & Hoiem 2017).

    arXiv:1606.09282. Cross-entropy of softmax(student / T) against softmax(source / T), mean over the batch, in nats.
    As in the paper, which takes T = 2, there is no factor T². For segmentation and detection see `distillation`.
    """
    temperature = hparams["temperature"]
    source_head = outputs["source"]
    student = at_least_f32(source_head["logits"] if isinstance(source_head, Mapping) else source_head)
    source = _match_resolution(student, at_least_f32(references["source"]["logits"]))
    if isinstance(source_head, Mapping):
        targets = jax.nn.sigmoid(source / temperature)
        losses = optax.sigmoid_binary_cross_entropy(student / temperature, targets)
        return losses.sum() / expected_objects(jax.nn.sigmoid(source))
    return optax.softmax_cross_entropy(student / temperature, jax.nn.softmax(source / temperature)).mean()


def expected_objects(probabilities: jax.Array) -> jax.Array:
    """Return the expected number of objects in a batch, at least 1: the normalizer of losses over locations.

    Args:
      probabilities: [..., P, C], of each class at each location.
    """
    return jnp.maximum(1, probabilities.max(-1).sum())


def _match_resolution(student: jax.Array, logits: jax.Array) -> jax.Array:
    """Return another network's logits at the student's resolution; 4-D logits are resized.

    Raises:
      UserError: the shapes of logits that cannot be resized differ.
    """
    if student.ndim == 4:
        return resize_logits(logits, student.shape[1:3])
    if student.shape != logits.shape:
        raise UserError(
            f"The teacher predicts at {logits.shape[-2]} locations of an image, the student at {student.shape[-2]}: "
            "give both detectors the same strides (model.head_options)."
        )
    return logits


def _binary_entropy(probabilities: jax.Array) -> jax.Array:
    complement = 1 - probabilities
    return -(
        jax.scipy.special.xlogy(probabilities, probabilities) + jax.scipy.special.xlog1py(complement, -probabilities)
    )


def _mean_square(features: jax.Array) -> jax.Array:
    """Return the mean square over channels: [B, h, w, c] → [B, h, w, 1]."""
    return jnp.square(at_least_f32(features)).mean(-1, keepdims=True)


def _normalize(x: jax.Array) -> jax.Array:
    """Divide by the norm over locations, at least 1e-12, so that the gradient of a map of zeros is 0 and not NaN."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum((1, 2, 3), keepdims=True), 1e-24))


def _resize_like(x: jax.Array, target: jax.Array) -> jax.Array:
    """Resize a feature map to the height and width of another: [B, h', w', c] → [B, h, w, c]."""
    shape = (len(x), *target.shape[1:3], x.shape[-1])
    return x if x.shape == shape else jax.image.resize(x, shape, "bilinear", antialias=True)
