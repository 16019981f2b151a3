"""Pure functions on boxes of fixed shapes: areas, overlaps and non-maximum suppression.

A box is [y0, x0, y1, x1] in pixels, along the last axis of every array of boxes. A box with y1 <= y0 or x1 <= x0 has no
area and overlaps nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class NmsResult(NamedTuple):
    """The detections that non-maximum suppression keeps, best first, padded to a fixed length.

    Attributes:
      index: int32 [K], positions in the input.
      valid: bool [K], False for padding.
    """

    index: jax.Array
    valid: jax.Array


def area(boxes: jax.Array) -> jax.Array:
    """Return the areas of boxes in square pixels, [..., 4] → [...]."""
    return jnp.prod(jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0), -1)


def intersection(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return the area that two boxes share, elementwise: [..., 4], [..., 4] → [...]."""
    return area(jnp.concatenate([jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])], -1))


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return intersection over union, elementwise: [..., 4], [..., 4] → [...]; 0 where neither box has an area."""
    shared = intersection(a, b)
    union = area(a) + area(b) - shared
    return shared / jnp.where(union > 0, union, 1)


def pairwise_iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return intersection over union of every pair of boxes, [N, 4], [M, 4] → [N, M]."""
    return iou(a[:, None], b[None])


def giou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return generalized IoU, elementwise: [..., 4], [..., 4] → [...] in (-1, 1] (Rezatofighi et al. 2019).

    arXiv:1902.09630: the IoU minus the fraction of the smallest enclosing box that neither box covers. Boxes that do
    not overlap therefore have a gradient towards each other.
    """
    shared = intersection(a, b)
    union = area(a) + area(b) - shared
    enclosing = area(jnp.concatenate([jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:])], -1))
    divisor = jnp.where(enclosing > 0, enclosing, 1)
    return shared / jnp.where(union > 0, union, 1) - jnp.where(enclosing > 0, (enclosing - union) / divisor, 0)


def nms(
    boxes: jax.Array, scores: jax.Array, classes: jax.Array, threshold: float, min_score: float, max_boxes: int
) -> NmsResult:
    """Apply greedy non-maximum suppression within each class.

    Args:
      boxes: [N, 4].
      scores: [N]; ties are broken by position.
      classes: int [N]; boxes of different classes do not suppress each other.
      threshold: IoU with a better box that is kept, above which a box is removed.
      min_score: boxes with a score up to this one are removed.
      max_boxes: K, the length of the result.
    """
    order = jnp.argsort(-scores, stable=True)
    sorted_boxes = boxes[order]
    sorted_classes = classes[order]
    overlaps = pairwise_iou(sorted_boxes, sorted_boxes) > threshold
    suppresses = overlaps & (sorted_classes[:, None] == sorted_classes[None])

    def decide(i: jax.Array, kept: jax.Array) -> jax.Array:
        # Boxes from i on are not decided yet, and False in `kept`.
        return kept.at[i].set((scores[order[i]] > min_score) & ~(kept & suppresses[i]).any())

    kept = jax.lax.fori_loop(0, len(order), decide, jnp.zeros(len(order), bool))
    kept_first = jnp.argsort(~kept, stable=True)[:max_boxes]
    index = order[kept_first].astype(jnp.int32)
    valid = kept[kept_first]
    padding = max(0, max_boxes - len(order))
    return NmsResult(jnp.pad(index, (0, padding)), jnp.pad(valid, (0, padding)))


def clip(boxes: jax.Array, height: int | jax.Array, width: int | jax.Array) -> jax.Array:
    """Clip boxes [..., 4] to an image of `height` × `width` pixels."""
    return jnp.clip(boxes, 0, jnp.array([height, width, height, width], boxes.dtype))
