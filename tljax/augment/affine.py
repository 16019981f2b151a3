"""One affine warp of a picture with all that lies on it: its mask, and its boxes.

However many changes are drawn, a picture is interpolated once. A place is (row, column); pixel i covers [i, i + 1], so
that boxes and pixels mean the same places.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from tljax.config import AugmentConfig
from tljax.losses.pixelwise import IGNORED
from tljax.ops import boxes as boxes_of

# What a picture has where the warp looks beyond its edge.
GREY = 128


class AffineRanges(NamedTuple):
    """How much a picture may change; the default leaves it as it is.

    Attributes:
      flip: chance of being mirrored left and right.
      scale: least and largest factor of its size, drawn evenly in its logarithm.
      rotate: largest angle either way, in degrees.
      translate: largest shift either way along each axis, as a share of the side.
    """

    flip: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    rotate: float = 0.0
    translate: float = 0.0

    @classmethod
    def of(cls, config: AugmentConfig) -> AffineRanges:
        """What a config asks for."""
        return cls(0.5 * config.flip, config.scale, config.rotate, config.translate)


class Affine(NamedTuple):
    """The output at place p from the centre shows the input's place matrix p + shift from the centre.

    Attributes:
      matrix: [2, 2].
      shift: [2], in pixels of the input.
    """

    matrix: jax.Array
    shift: jax.Array


def sample_affine(key: jax.Array, ranges: AffineRanges, height: int, width: int) -> Affine:
    """A warp by chance, for pictures of this size: mirrored, scaled, turned, and moved, about the centre."""
    flip_key, scale_key, turn_key, move_key = jax.random.split(key, 4)
    mirror = jnp.where(jax.random.bernoulli(flip_key, ranges.flip), -1.0, 1.0)
    low, high = jnp.log(jnp.array(ranges.scale, jnp.float32))
    scale = jnp.exp(jax.random.uniform(scale_key, minval=low, maxval=high))
    angle = jnp.deg2rad(jax.random.uniform(turn_key, minval=-ranges.rotate, maxval=ranges.rotate))
    move = jax.random.uniform(move_key, (2,), minval=-ranges.translate, maxval=ranges.translate)
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    # The output is the input mirrored, scaled and turned, then moved; the warp is the way back.
    matrix = jnp.array([[cos, -sin], [mirror * sin, mirror * cos]]) / scale
    back = move * jnp.array([height, width], jnp.float32)
    return Affine(matrix, -(matrix * back).sum(-1))


def warp_image(image: jax.Array, warp: Affine, fill: int | None = GREY) -> jax.Array:
    """uint8 [H, W, C] → the same, bilinear; beyond the edge `fill`, or with None what is nearest on it."""
    places = _seen(image.shape[:2], warp)

    def channel(values: jax.Array) -> jax.Array:
        mode = {"mode": "nearest"} if fill is None else {"mode": "constant", "cval": fill}
        return map_coordinates(values.astype(jnp.float32), places, order=1, **mode)

    return jnp.round(jax.vmap(channel, -1, -1)(image)).astype(jnp.uint8)


def warp_mask(labels: jax.Array, warp: Affine) -> jax.Array:
    """Integers [H, W] → the same, each place that of the nearest pixel; `IGNORED` beyond the edge."""
    (rows, columns), (height, width) = (jnp.round(p).astype(jnp.int32) for p in _seen(labels.shape, warp)), labels.shape
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    seen = labels[jnp.clip(rows, 0, height - 1), jnp.clip(columns, 0, width - 1)]
    return jnp.where(inside, seen, IGNORED).astype(labels.dtype)


def warp_weights(values: jax.Array, warp: Affine) -> jax.Array:
    """Numbers [H, W] → the same, bilinear; 0 beyond the edge."""
    return map_coordinates(values, _seen(values.shape, warp), order=1, mode="constant", cval=0)


def warp_boxes(
    boxes_in: jax.Array, warp: Affine, height: int, width: int, min_visible: float
) -> tuple[jax.Array, jax.Array]:
    """The boxes around where the corners of boxes [N, 4] come to lie, clipped to the picture.

    Returns:
      Boxes [N, 4], and bool [N]: whether at least a share `least` of the box, and some of it, is on the picture.
    """
    centre = jnp.array([height, width], jnp.float32) / 2
    y0, x0, y1, x1 = jnp.moveaxis(boxes_in, -1, 0)
    corners = jnp.stack([jnp.stack(corner, -1) for corner in ((y0, x0), (y0, x1), (y1, x0), (y1, x1))], -2)
    there = jnp.linalg.inv(warp.matrix)
    moved = ((corners - centre - warp.shift)[..., None, :] * there).sum(-1) + centre
    around = jnp.concatenate([moved.min(-2), moved.max(-2)], -1)
    clipped, whole = boxes_of.clip(around, height, width), boxes_of.area(around)
    left = boxes_of.area(clipped)
    return clipped, (left > 0) & (left >= min_visible * whole)


def _seen(shape: tuple[int, int], warp: Affine) -> list[jax.Array]:
    """Rows and columns of the pixels that each pixel of the output shows, [H, W] each, with fractions."""
    centre = [(n - 1) / 2 for n in shape]
    y, x = (jnp.arange(n, dtype=jnp.float32) - c for n, c in zip(shape, centre, strict=True))
    # Sums, not products of matrices, which some devices compute in few digits.
    return [m[0] * y[:, None] + m[1] * x + s + c for m, s, c in zip(warp.matrix, warp.shift, centre, strict=True)]
