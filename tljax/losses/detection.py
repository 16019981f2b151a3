"""Losses of a box, a class and a centre-ness at every place of one or more maps (FCOS, Tian et al. 2019).

arXiv:1904.01355, as torchvision has it. Outputs are those of `tljax.models.heads.detector`: `logits` [B, P, C], `boxes`
[B, P, 4], `centre` [B, P], `places` [B, P, 3]: row, column and stride. A batch has `label` int32 [B, M], -1 where there
is no box and `CROWD` where it is of a crowd, and `boxes` [B, M, 4]. All in pixels of the network's input. Each loss is
a sum over a batch's places divided by how many of them have a box, at least one.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from tljax.losses.base import Batch, HParams, Outputs, References, at_least_f32, loss
from tljax.ops import boxes as boxes_of

# Of the focal loss (Lin et al. 2017, arXiv:1708.02002, section 4.1).
ALPHA = 0.25
GAMMA = 2.0
# How far from a box's centre its places are, in strides (Tian et al. 2020, arXiv:2006.09214).
RADIUS = 1.5
# How far from a place the farthest side of its box is, in strides: 64 to 128 pixels at stride 16 (FCOS, section 3.2).
NEAR, FAR = 4.0, 8.0
# The label of a box around many objects or unclear ones: what is said inside of it is neither right nor wrong.
CROWD = -2
# Of what a network says, as in the FCOS authors' code: a score below goes, and an overlap with a better box above.
MIN_SCORE = 0.05
MAX_IOU = 0.6
# Detections of a picture that are left, as COCO looks at.
MAX_DETECTIONS = 100
# Candidates of a picture before suppression, which compares each with each; FCOS has 1000.
CANDIDATES = 400


class Targets(NamedTuple):
    """What every place is to say.

    Attributes:
      positive: bool [B, P], whether it has a box.
      classes: int32 [B, P], those of the boxes, -1 where there is none.
      boxes: [B, P, 4], any where there is none.
    """

    positive: jax.Array
    classes: jax.Array
    boxes: jax.Array


class LossTerms(NamedTuple):
    """What the three losses have of each picture before the division, and how many places have a box; [B] each."""

    focal: jax.Array
    giou: jax.Array
    centerness: jax.Array
    positives: jax.Array


class Detections(NamedTuple):
    """What a network finds, best first.

    Attributes:
      boxes: [B, 100, 4], clipped to the input.
      scores: [B, 100], the geometric mean of the class's chance and the centre-ness.
      classes: int32 [B, 100], -1 behind the last one, where boxes and scores are 0.
    """

    boxes: jax.Array
    scores: jax.Array
    classes: jax.Array


@loss("boxes")
def detection(outputs: Outputs, batch: Batch, reference: References, hyper: HParams) -> jax.Array:
    """The sum of `detection_focal`, `detection_giou` and `detection_centre`."""
    sums = loss_terms(outputs, batch)
    return _per_positive(sums.focal + sums.giou + sums.centerness, sums)


@loss("boxes", "source_output")
def source_detection(outputs: Outputs, batch: Batch, reference: References, hyper: HParams) -> jax.Array:
    """`detection` of the second head; the labels are then of the source's classes."""
    sums = loss_terms(outputs["source"], batch)
    return _per_positive(sums.focal + sums.giou + sums.centerness, sums)


@loss("boxes")
def detection_focal(outputs: Outputs, batch: Batch, reference: References, hyper: HParams) -> jax.Array:
    """The focal loss of every class at every place against yes or no (Lin et al. 2017, arXiv:1708.02002)."""
    sums = loss_terms(outputs, batch)
    return _per_positive(sums.focal, sums)


@loss("boxes")
def detection_giou(outputs: Outputs, batch: Batch, reference: References, hyper: HParams) -> jax.Array:
    """One minus the generalized IoU at places that have a box (Rezatofighi et al. 2019, arXiv:1902.09630)."""
    sums = loss_terms(outputs, batch)
    return _per_positive(sums.giou, sums)


@loss("boxes")
def detection_centerness(outputs: Outputs, batch: Batch, reference: References, hyper: HParams) -> jax.Array:
    """The binary cross-entropy of the centre-ness at places that have a box, in nats (Tian et al. 2019, eq. 3)."""
    sums = loss_terms(outputs, batch)
    return _per_positive(sums.centerness, sums)


def loss_terms(outputs: Outputs, batch: Batch, nearest: bool = True) -> LossTerms:
    """The losses of each picture, undivided; `nearest` as in `assign`."""
    found = make_targets(outputs, batch, nearest)
    unclear = jax.vmap(_in_crowd)(outputs["places"], batch["label"], batch["boxes"]) & ~found.positive
    logits, centre = at_least_f32(outputs["logits"]), at_least_f32(outputs["centre"])
    wanted = jax.nn.one_hot(found.classes, logits.shape[-1], dtype=bool)
    apart = 1 - boxes_of.giou(at_least_f32(outputs["boxes"]), found.boxes)
    central = optax.sigmoid_binary_cross_entropy(centre, centerness(outputs["places"], found.boxes))
    return LossTerms(
        jnp.where(unclear[..., None], 0, focal(logits, wanted)).sum((1, 2)),
        *(jnp.where(found.positive, loss, 0).sum(1) for loss in (apart, central)),
        found.positive.sum(1),
    )


def _in_crowd(locations: jax.Array, label: jax.Array, boxes: jax.Array) -> jax.Array:
    """Whether each place lies in a crowd: [P, 3], [M], [M, 4] → bool [P]."""
    at = locations[:, None, :2]
    inside = ((at >= boxes[:, :2]) & (at < boxes[:, 2:])).all(-1)
    return (inside & (label == CROWD)).any(1)


def focal(logits: jax.Array, wanted: jax.Array) -> jax.Array:
    """α (1 - p)^γ times the cross-entropy, p the chance of what is right; [...], bool [...] → [...].

    α is `ALPHA` where the class is wanted and 1 - `ALPHA` where it is not.
    """
    right = jnp.where(wanted, logits, -logits)
    weight = jnp.where(wanted, ALPHA, 1 - ALPHA)
    return -weight * jax.nn.sigmoid(-right) ** GAMMA * jax.nn.log_sigmoid(right)


def centerness(locations: jax.Array, boxes: jax.Array) -> jax.Array:
    """How central a place is in its box, [..., 3], [..., 4] → [...]: 1 in the middle, 0 on an edge (eq. 3).

    1 outside as well: such a place is the only one that its box has, and nothing better is there to be preferred to it.
    """
    before, after = locations[..., :2] - boxes[..., :2], boxes[..., 2:] - locations[..., :2]
    inside = (jnp.minimum(before, after) > 0).all(-1)
    ratio = jnp.minimum(before, after) / jnp.where(inside[..., None], jnp.maximum(before, after), 1)
    return jnp.where(inside, jnp.sqrt(jnp.where(inside, ratio.prod(-1), 1)), 1)


def make_targets(outputs: Outputs, batch: Batch, nearest: bool = True) -> Targets:
    """The class and the box of every place; `nearest` as in `assign`."""
    of_picture = functools.partial(match_locations, nearest=nearest)
    index = jax.vmap(of_picture)(outputs["places"], batch["label"], batch["boxes"])
    positive, index = index >= 0, jnp.maximum(index, 0)
    classes = jnp.where(positive, jnp.take_along_axis(batch["label"], index, 1), -1)
    return Targets(positive, classes, jnp.take_along_axis(batch["boxes"], index[..., None], 1))


def match_locations(locations: jax.Array, label: jax.Array, boxes: jax.Array, nearest: bool = True) -> jax.Array:
    """Which box each place is responsible for.

    A place may have a box that it lies in, from whose centre it is less than `RADIUS` strides away along both axes, and
    whose farthest side is between `NEAR` and `FAR` strides away; of several, it has the smallest. The finest level has
    no least distance and the coarsest no largest, so that a single level has boxes of every size.

    Args:
      locations: [P, 3], row, column and stride; levels are told apart by their stride, of which each is twice the next.
      label: int32 [M], -1 where there is no box.
      boxes: [M, 4].
      nearest: a box that no place may have by these rules, such as a small one between the centres of a coarse grid,
        may be had by the nearest place of the level for its size, which a smaller box can still take. It is no rule of
        FCOS, where nothing is learned of such a box.

    Returns:
      int32 [P], index of a box, -1 for none.
    """
    at, stride = locations[:, None, :2], locations[:, None, 2]
    known = label >= 0
    low = jnp.where(stride == stride.min(), 0, NEAR * stride)
    high = jnp.where(stride == stride.max(), jnp.inf, FAR * stride)
    sides = jnp.concatenate([at - boxes[:, :2], boxes[:, 2:] - at], -1)
    offset = at - (boxes[:, :2] + boxes[:, 2:]) / 2
    central = (sides.min(-1) > 0) & (jnp.abs(offset).max(-1) < RADIUS * stride)
    farthest = sides.max(-1)
    may = central & (farthest > low) & (farthest < high) & known
    if nearest:
        left_out = known & ~may.any(0)
        half = (boxes[:, 2:] - boxes[:, :2]).max(-1) / 2
        level = (half >= low) & (half < high)
        distance = jnp.where(level | ~level.any(0), jnp.square(offset).sum(-1), jnp.inf)
        may |= left_out & (jnp.arange(len(locations))[:, None] == distance.argmin(0))
    smallest = jnp.where(may, boxes_of.area(boxes), jnp.inf).argmin(1)
    return jnp.where(may.any(1), smallest, -1).astype(jnp.int32)


def decode(outputs: Outputs) -> Detections:
    """The best boxes of each picture, after suppression within each class."""
    return jax.vmap(_decode)(*(outputs[name] for name in ("logits", "boxes", "centre", "places")))


def _decode(logits: jax.Array, boxes: jax.Array, centre: jax.Array, locations: jax.Array) -> Detections:
    scores = jnp.sqrt(jax.nn.sigmoid(logits) * jax.nn.sigmoid(centre)[:, None])
    best, index = jax.lax.top_k(scores.ravel(), min(CANDIDATES, scores.size))
    place, kinds = jnp.divmod(index, logits.shape[-1])
    side = (locations[:, 0] + locations[:, 2] / 2).max()  # the last cell ends where the input does
    candidates = boxes_of.clip(boxes[place], side, side)
    index, valid = boxes_of.nms(candidates, best, kinds, MAX_IOU, MIN_SCORE, MAX_DETECTIONS)
    return Detections(
        jnp.where(valid[:, None], candidates[index], 0),
        jnp.where(valid, best[index], 0),
        jnp.where(valid, kinds[index], -1).astype(jnp.int32),
    )


def _per_positive(losses: jax.Array, sums: LossTerms) -> jax.Array:
    return losses.sum() / jnp.maximum(sums.positives.sum(), 1)
