"""FCOS losses and box decoding: a class, a box and a centerness at every location of one or more feature maps.

Tian et al. 2019, arXiv:1904.01355, as in torchvision. Outputs are those of `tljax.models.heads.detector`: `logits`
[B, P, C], `boxes` [B, P, 4], `centre` (centerness logits) [B, P], and `places` (locations) [B, P, 3]: row, column and
stride. A batch has `label` int32 [B, M], -1 for padding and `CROWD` for crowd boxes, and `boxes` [B, M, 4]. All
coordinates are in pixels of the network's input. Each loss is a sum over the batch's locations divided by the number of
positive locations, at least 1.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from tljax.losses.base import Batch, HParams, Outputs, References, at_least_f32, loss
from tljax.ops import boxes as box_ops

# Focal loss (Lin et al. 2017, arXiv:1708.02002, section 4.1).
ALPHA = 0.25
GAMMA = 2.0
# Center sampling: maximum distance of a location from its box's center, in strides (Tian et al. 2020,
# arXiv:2006.09214).
RADIUS = 1.5
# Range of the distance from a location to the farthest side of its box, in strides: 64 to 128 pixels at stride 16
# (FCOS, section 3.2).
NEAR, FAR = 4.0, 8.0
# Label of a crowd box: background predictions inside it are neither right nor wrong.
CROWD = -2
# Post-processing, as in the FCOS authors' code: minimum score, and maximum IoU with a better box.
MIN_SCORE = 0.05
MAX_IOU = 0.6
# Detections of an image that are kept, as in COCO's evaluation.
MAX_DETECTIONS = 100
# Candidates of an image before suppression, which compares all pairs; FCOS has 1000.
CANDIDATES = 400


class Targets(NamedTuple):
    """Training targets of every location.

    Attributes:
      positive: bool [B, P], whether the location has a box.
      classes: int32 [B, P], the class of the box, -1 where there is none.
      boxes: [B, P, 4], arbitrary where there is none.
    """

    positive: jax.Array
    classes: jax.Array
    boxes: jax.Array


class LossTerms(NamedTuple):
    """The unnormalized losses of each image and its number of positive locations, [B] each."""

    focal: jax.Array
    giou: jax.Array
    centerness: jax.Array
    positives: jax.Array


class Detections(NamedTuple):
    """Predicted boxes, best first.

    Attributes:
      boxes: [B, 100, 4], clipped to the input.
      scores: [B, 100], the geometric mean of class probability and centerness.
      classes: int32 [B, 100], -1 for padding, where boxes and scores are 0.
    """

    boxes: jax.Array
    scores: jax.Array
    classes: jax.Array


@loss("boxes")
def detection(outputs: Outputs, batch: Batch, references: References, hparams: HParams) -> jax.Array:
    """The sum of `detection_focal`, `detection_giou` and `detection_centerness`."""
    terms = loss_terms(outputs, batch)
    return _per_positive(terms.focal + terms.giou + terms.centerness, terms)


@loss("boxes", "source_output")
def source_detection(outputs: Outputs, batch: Batch, references: References, hparams: HParams) -> jax.Array:
    """`detection` of the second head, against labels of the source's classes."""
    terms = loss_terms(outputs["source"], batch)
    return _per_positive(terms.focal + terms.giou + terms.centerness, terms)


@loss("boxes")
def detection_focal(outputs: Outputs, batch: Batch, references: References, hparams: HParams) -> jax.Array:
    """The sigmoid focal loss of every class at every location (Lin et al. 2017, arXiv:1708.02002)."""
    terms = loss_terms(outputs, batch)
    return _per_positive(terms.focal, terms)


@loss("boxes")
def detection_giou(outputs: Outputs, batch: Batch, references: References, hparams: HParams) -> jax.Array:
    """One minus the generalized IoU at positive locations (Rezatofighi et al. 2019, arXiv:1902.09630)."""
    terms = loss_terms(outputs, batch)
    return _per_positive(terms.giou, terms)


@loss("boxes")
def detection_centerness(outputs: Outputs, batch: Batch, references: References, hparams: HParams) -> jax.Array:
    """The binary cross-entropy of the centerness at positive locations, in nats (Tian et al. 2019, eq. 3)."""
    terms = loss_terms(outputs, batch)
    return _per_positive(terms.centerness, terms)


def loss_terms(outputs: Outputs, batch: Batch, nearest: bool = True) -> LossTerms:
    """Return the unnormalized losses of each image; `nearest` as in `match_locations`."""
    targets = make_targets(outputs, batch, nearest)
    ignored = jax.vmap(_in_crowd)(outputs["places"], batch["label"], batch["boxes"]) & ~targets.positive
    logits = at_least_f32(outputs["logits"])
    one_hot = jax.nn.one_hot(targets.classes, logits.shape[-1], dtype=bool)
    giou_losses = 1 - box_ops.giou(at_least_f32(outputs["boxes"]), targets.boxes)
    centerness_losses = optax.sigmoid_binary_cross_entropy(
        at_least_f32(outputs["centre"]), centerness(outputs["places"], targets.boxes)
    )
    return LossTerms(
        focal=jnp.where(ignored[..., None], 0, focal(logits, one_hot)).sum((1, 2)),
        giou=jnp.where(targets.positive, giou_losses, 0).sum(1),
        centerness=jnp.where(targets.positive, centerness_losses, 0).sum(1),
        positives=targets.positive.sum(1),
    )


def _in_crowd(locations: jax.Array, label: jax.Array, boxes: jax.Array) -> jax.Array:
    """Return whether each location lies in a crowd box: [P, 3], [M], [M, 4] → bool [P]."""
    points = locations[:, None, :2]
    inside = ((points >= boxes[:, :2]) & (points < boxes[:, 2:])).all(-1)
    return (inside & (label == CROWD)).any(1)


def focal(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Return α (1 - p)^γ times the cross-entropy, p the probability of the target: [...], bool [...] → [...].

    α is `ALPHA` where the target is true and 1 - `ALPHA` elsewhere; γ is `GAMMA`.
    """
    target_logits = jnp.where(targets, logits, -logits)
    weight = jnp.where(targets, ALPHA, 1 - ALPHA)
    return -weight * jax.nn.sigmoid(-target_logits) ** GAMMA * jax.nn.log_sigmoid(target_logits)


def centerness(locations: jax.Array, boxes: jax.Array) -> jax.Array:
    """Return the centerness of locations in their boxes, [..., 3], [..., 4] → [...]: 1 in the middle, 0 on an edge.

    Equation 3 of FCOS. Also 1 outside of the box: such a location is the only one of its box (see `match_locations`),
    so there is no better one to prefer.
    """
    before = locations[..., :2] - boxes[..., :2]
    after = boxes[..., 2:] - locations[..., :2]
    inside = (jnp.minimum(before, after) > 0).all(-1)
    ratio = jnp.minimum(before, after) / jnp.where(inside[..., None], jnp.maximum(before, after), 1)
    return jnp.where(inside, jnp.sqrt(jnp.where(inside, ratio.prod(-1), 1)), 1)


def make_targets(outputs: Outputs, batch: Batch, nearest: bool = True) -> Targets:
    """Return the class and the box of every location; `nearest` as in `match_locations`."""
    match = functools.partial(match_locations, nearest=nearest)
    matched = jax.vmap(match)(outputs["places"], batch["label"], batch["boxes"])
    positive = matched >= 0
    index = jnp.maximum(matched, 0)
    classes = jnp.where(positive, jnp.take_along_axis(batch["label"], index, 1), -1)
    return Targets(positive, classes, jnp.take_along_axis(batch["boxes"], index[..., None], 1))


def match_locations(locations: jax.Array, label: jax.Array, boxes: jax.Array, nearest: bool = True) -> jax.Array:
    """Return which box each location predicts.

    A location matches a box that contains it, whose center is less than `RADIUS` strides away along both axes, and
    whose farthest side is between `NEAR` and `FAR` strides away; of several boxes, the smallest. The finest level has
    no lower bound and the coarsest no upper bound, so that a single level has boxes of every size.

    Args:
      locations: [P, 3], row, column and stride. The stride identifies the level; strides double from level to level.
      label: int32 [M], negative where there is no box.
      boxes: [M, 4].
      nearest: also match a box that no location matches by these rules, such as a small one between the centers of a
        coarse grid, to the nearest location of the level for its size, unless a smaller box takes that location. FCOS
        does not have this rule, and never trains on such a box.

    Returns:
      int32 [P], index of a box, -1 for none.
    """
    points = locations[:, None, :2]
    stride = locations[:, None, 2]
    valid = label >= 0
    low = jnp.where(stride == stride.min(), 0, NEAR * stride)
    high = jnp.where(stride == stride.max(), jnp.inf, FAR * stride)
    sides = jnp.concatenate([points - boxes[:, :2], boxes[:, 2:] - points], -1)
    offset = points - (boxes[:, :2] + boxes[:, 2:]) / 2
    central = (sides.min(-1) > 0) & (jnp.abs(offset).max(-1) < RADIUS * stride)
    farthest = sides.max(-1)
    matches = central & (farthest > low) & (farthest < high) & valid
    if nearest:
        unmatched = valid & ~matches.any(0)
        half = (boxes[:, 2:] - boxes[:, :2]).max(-1) / 2
        on_level = (half >= low) & (half < high)
        distance = jnp.where(on_level | ~on_level.any(0), jnp.square(offset).sum(-1), jnp.inf)
        matches |= unmatched & (jnp.arange(len(locations))[:, None] == distance.argmin(0))
    smallest = jnp.where(matches, box_ops.area(boxes), jnp.inf).argmin(1)
    return jnp.where(matches.any(1), smallest, -1).astype(jnp.int32)


def decode(outputs: Outputs) -> Detections:
    """Return the best boxes of each image, after non-maximum suppression within each class."""
    return jax.vmap(_decode)(*(outputs[name] for name in ("logits", "boxes", "centre", "places")))


def _decode(logits: jax.Array, boxes: jax.Array, centre: jax.Array, locations: jax.Array) -> Detections:
    scores = jnp.sqrt(jax.nn.sigmoid(logits) * jax.nn.sigmoid(centre)[:, None])
    top_scores, top_index = jax.lax.top_k(scores.ravel(), min(CANDIDATES, scores.size))
    location, classes = jnp.divmod(top_index, logits.shape[-1])
    side = (locations[:, 0] + locations[:, 2] / 2).max()  # the last cell ends at the edge of the input
    candidates = box_ops.clip(boxes[location], side, side)
    index, valid = box_ops.nms(candidates, top_scores, classes, MAX_IOU, MIN_SCORE, MAX_DETECTIONS)
    return Detections(
        boxes=jnp.where(valid[:, None], candidates[index], 0),
        scores=jnp.where(valid, top_scores[index], 0),
        classes=jnp.where(valid, classes[index], -1).astype(jnp.int32),
    )


def _per_positive(losses: jax.Array, terms: LossTerms) -> jax.Array:
    """Return the sum of the losses of each image [B], divided by the batch's number of positive locations."""
    return losses.sum() / jnp.maximum(terms.positives.sum(), 1)
