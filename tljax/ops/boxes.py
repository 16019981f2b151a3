"""Boxes as pure functions of arrays of fixed shape: overlaps, and which of many detections are kept.

A box is [y0, x0, y1, x1] in pixels; the last axis of every array of boxes has these four. A box whose ends are the
wrong way round, or equal, has no area, and overlaps nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class NmsResult(NamedTuple):
    """The detections that suppression leaves, best first; what is behind the last one is padding.

    Attributes:
      index: int32 [K], among those that went in.
      valid: bool [K], false for padding.
    """

    index: jax.Array
    valid: jax.Array


def area(boxes: jax.Array) -> jax.Array:
    """[..., 4] → [...], in square pixels."""
    return jnp.prod(jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0), -1)


def intersection(a: jax.Array, b: jax.Array) -> jax.Array:
    """The area that two boxes share: [..., 4], [..., 4] → [...]."""
    return area(jnp.concatenate([jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])], -1))


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Intersection over union of boxes one by one, [..., 4], [..., 4] → [...]; 0 where neither has an area."""
    shared = intersection(a, b)
    union = area(a) + area(b) - shared
    return shared / jnp.where(union > 0, union, 1)


def pairwise_iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Intersection over union of each with each, [N, 4], [M, 4] → [N, M]."""
    return iou(a[:, None], b[None])


def giou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Generalized IoU of boxes one by one, [..., 4], [..., 4] → [...] in (-1, 1] (Rezatofighi et al. 2019).

    arXiv:1902.09630: the IoU less the share of the smallest box around both that neither covers, so that boxes that do
    not meet have a gradient towards each other.
    """
    shared = intersection(a, b)
    union = area(a) + area(b) - shared
    around = area(jnp.concatenate([jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:])], -1))
    some = jnp.where(around > 0, around, 1)
    return shared / jnp.where(union > 0, union, 1) - jnp.where(around > 0, (around - union) / some, 0)


def nms(
    boxes: jax.Array, scores: jax.Array, classes: jax.Array, threshold: float, min_score: float, max_boxes: int
) -> NmsResult:
    """Greedy non-maximum suppression within each class.

    Args:
      boxes: [N, 4].
      scores: [N]; of equal ones the first comes first.
      classes: int [N]; boxes of different classes do not suppress each other.
      threshold: a box that overlaps a better one that is kept by more than this IoU goes.
      min_score: boxes whose score is not above this go.
      max_boxes: K, how many are kept.
    """
    order = jnp.argsort(-scores, stable=True)
    ranked, kinds = boxes[order], classes[order]
    hides = (pairwise_iou(ranked, ranked) > threshold) & (kinds[:, None] == kinds[None])

    def judge(i: jax.Array, kept: jax.Array) -> jax.Array:
        # Those behind i have not been judged, and are false.
        return kept.at[i].set((scores[order[i]] > min_score) & ~(kept & hides[i]).any())

    kept = jax.lax.fori_loop(0, len(order), judge, jnp.zeros(len(order), bool))
    first = jnp.argsort(~kept, stable=True)[:max_boxes]
    index, valid = order[first].astype(jnp.int32), kept[first]
    missing = max(0, max_boxes - len(order))
    return NmsResult(jnp.pad(index, (0, missing)), jnp.pad(valid, (0, missing)))


def clip(boxes: jax.Array, height: int, width: int) -> jax.Array:
    """The part of each box [..., 4] that lies on a picture."""
    return jnp.clip(boxes, 0, jnp.array([height, width, height, width], boxes.dtype))
