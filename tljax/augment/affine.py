"""Random affine transforms of an image together with its mask and boxes.

However many changes are sampled, an image is interpolated once. Coordinates are (row, column); pixel i covers
[i, i + 1], so that boxes and pixels use the same coordinates.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from tljax.config import AugmentConfig
from tljax.losses.pixelwise import IGNORED
from tljax.ops import boxes as box_ops

# Fill value outside of the image.
GREY = 128


class AffineRanges(NamedTuple):
    """Ranges of the random transforms; the default is the identity.

    Attributes:
      flip: probability of a horizontal flip.
      scale: minimum and maximum scale factor, sampled log-uniformly.
      rotate: maximum angle in either direction, in degrees.
      translate: maximum shift in either direction along each axis, as a share of the side.
    """

    flip: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    rotate: float = 0.0
    translate: float = 0.0

    @classmethod
    def from_config(cls, config: AugmentConfig) -> AffineRanges:
        """Return the ranges of a config."""
        return cls(0.5 * config.flip, config.scale, config.rotate, config.translate)


class Affine(NamedTuple):
    """A map from output to input coordinates: input = matrix @ output + shift, both relative to the image center.

    Attributes:
      matrix: [2, 2].
      shift: [2], in pixels of the input.
    """

    matrix: jax.Array
    shift: jax.Array


def sample_affine(key: jax.Array, ranges: AffineRanges, height: int, width: int) -> Affine:
    """Sample a flip, scale, rotation and translation about the center of an image of this size."""
    flip_key, scale_key, rotate_key, translate_key = jax.random.split(key, 4)
    mirror = jnp.where(jax.random.bernoulli(flip_key, ranges.flip), -1.0, 1.0)
    low, high = jnp.log(jnp.array(ranges.scale, jnp.float32))
    scale = jnp.exp(jax.random.uniform(scale_key, minval=low, maxval=high))
    angle = jnp.deg2rad(jax.random.uniform(rotate_key, minval=-ranges.rotate, maxval=ranges.rotate))
    shares = jax.random.uniform(translate_key, (2,), minval=-ranges.translate, maxval=ranges.translate)
    sin = jnp.sin(angle)
    cos = jnp.cos(angle)
    # Images are flipped, scaled and rotated, then translated; `Affine` is the inverse.
    matrix = jnp.array([[cos, -sin], [mirror * sin, mirror * cos]]) / scale
    translation = shares * jnp.array([height, width], jnp.float32)
    return Affine(matrix, -(matrix * translation).sum(-1))


def warp_image(image: jax.Array, transform: Affine, fill: int | None = GREY) -> jax.Array:
    """Transform an image, uint8 [H, W, C], with bilinear interpolation.

    Args:
      image: uint8 [H, W, C].
      transform: from output to input coordinates.
      fill: value outside of the image; None repeats the edge pixels.
    """
    coordinates = _input_coordinates(image.shape[:2], transform)

    def warp_channel(values: jax.Array) -> jax.Array:
        mode = {"mode": "nearest"} if fill is None else {"mode": "constant", "cval": fill}
        return map_coordinates(values.astype(jnp.float32), coordinates, order=1, **mode)

    return jnp.round(jax.vmap(warp_channel, -1, -1)(image)).astype(jnp.uint8)


def warp_mask(labels: jax.Array, transform: Affine) -> jax.Array:
    """Transform a mask, integers [H, W], by nearest neighbors, with `IGNORED` outside of the image."""
    height, width = labels.shape
    rows, columns = (jnp.round(x).astype(jnp.int32) for x in _input_coordinates(labels.shape, transform))
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    warped = labels[jnp.clip(rows, 0, height - 1), jnp.clip(columns, 0, width - 1)]
    return jnp.where(inside, warped, IGNORED).astype(labels.dtype)


def warp_weights(values: jax.Array, transform: Affine) -> jax.Array:
    """Transform pixel weights [H, W] bilinearly, with 0 outside of the image."""
    coordinates = _input_coordinates(values.shape, transform)
    return map_coordinates(values, coordinates, order=1, mode="constant", cval=0)


def warp_boxes(
    boxes: jax.Array, transform: Affine, height: int, width: int, min_visible: float
) -> tuple[jax.Array, jax.Array]:
    """Transform boxes: the bounding boxes of their transformed corners, clipped to the image.

    Args:
      boxes: [N, 4], in pixels of the image.
      transform: from output to input coordinates.
      height: of the image.
      width: of the image.
      min_visible: minimum share of a box's area that must remain inside the image.

    Returns:
      Boxes [N, 4], and whether each is visible, bool [N].
    """
    center = jnp.array([height, width], jnp.float32) / 2
    y0, x0, y1, x1 = jnp.moveaxis(boxes, -1, 0)
    corners = jnp.stack([jnp.stack(corner, -1) for corner in ((y0, x0), (y0, x1), (y1, x0), (y1, x1))], -2)
    inverse = jnp.linalg.inv(transform.matrix)
    warped = ((corners - center - transform.shift)[..., None, :] * inverse).sum(-1) + center
    bounding = jnp.concatenate([warped.min(-2), warped.max(-2)], -1)
    clipped = box_ops.clip(bounding, height, width)
    whole_area = box_ops.area(bounding)
    visible_area = box_ops.area(clipped)
    return clipped, (visible_area > 0) & (visible_area >= min_visible * whole_area)


def _input_coordinates(shape: tuple[int, int], transform: Affine) -> list[jax.Array]:
    """Return the input row and column, [H, W] each, that every output pixel is sampled from."""
    center = [(n - 1) / 2 for n in shape]
    y, x = (jnp.arange(n, dtype=jnp.float32) - c for n, c in zip(shape, center, strict=True))
    # Sums, not a matrix product, which some devices compute in low precision.
    return [
        m[0] * y[:, None] + m[1] * x + s + c for m, s, c in zip(transform.matrix, transform.shift, center, strict=True)
    ]
