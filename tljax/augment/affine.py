"""Random affine transforms of an image together with its mask and boxes.

However many changes are sampled, an image is interpolated once. Coordinates are (row, column); pixel i covers
[i, i + 1], so that boxes and pixels use the same coordinates.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from tljax.config import AugmentConfig
from tljax.losses.pixelwise import IGNORED
from tljax.ops import boxes as box_ops
from tljax.weights.preprocess import crop_length

# Minimum and maximum width over height of a random resized crop.
ASPECT_RATIOS = (3 / 4, 4 / 3)
# Fill value outside of the image.
GREY = 128


class AffineRanges(NamedTuple):
    """Ranges of the random transforms; the default is the identity.

    Attributes:
      flip: probability of a horizontal flip.
      scale: minimum and maximum scale factor, sampled log-uniformly.
      rotate: maximum angle in either direction, in degrees.
      translate: maximum shift in either direction along each axis, as a share of the side.
      crop: minimum and maximum share of the image's area in a random resized crop; (1, 1): no crop.
      crop_share: share of each side, in the center, that shows the crop.
    """

    flip: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    rotate: float = 0.0
    translate: float = 0.0
    crop: tuple[float, float] = (1.0, 1.0)
    crop_share: float = 1.0

    @classmethod
    def from_config(cls, config: AugmentConfig) -> AffineRanges:
        """Return the ranges of a config."""
        return cls(0.5 * config.flip, config.scale, config.rotate, config.translate, config.crop_scale)

    @property
    def is_identity(self) -> bool:
        """Whether no transform changes an image."""
        return self == AffineRanges(crop_share=self.crop_share)


class Affine(NamedTuple):
    """A map from output to input coordinates: input = matrix @ output + shift, both relative to the image center.

    Attributes:
      matrix: [2, 2].
      shift: [2], in pixels of the input.
    """

    matrix: jax.Array
    shift: jax.Array


def sample_affine(key: jax.Array, ranges: AffineRanges, height: int, width: int) -> Affine:
    """Sample a crop, then a flip, scale, rotation and translation about the center of an image of this size."""
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
    transform = Affine(matrix, -(matrix * translation).sum(-1))
    if ranges.crop == (1.0, 1.0):
        return transform
    size, center = sample_crop(jax.random.fold_in(key, 1), ranges.crop, height, width)
    # The crop fills the center of the image that the network sees.
    factor = size / jnp.array([crop_length(n, ranges.crop_share) for n in (height, width)], jnp.float32)
    return Affine(factor[:, None] * transform.matrix, factor * transform.shift + center)


def sample_crop(key: jax.Array, area: tuple[float, float], height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """Sample the box of a random resized crop (Szegedy et al. 2015, arXiv:1409.4842), as torchvision does.

    Of ten boxes with a random area and an aspect ratio from 3/4 to 4/3, log-uniformly, the first that fits is taken. If
    none does, it is the largest box in the center whose aspect ratio is in the range.

    Args:
      key: random key.
      area: minimum and maximum share of the image's area.
      height: of the image, in pixels.
      width: of the image, in pixels.

    Returns:
      Height and width of the box [2], and its center relative to the image's center [2], in pixels.
    """
    low, high = ASPECT_RATIOS
    area_key, ratio_key, offset_key = jax.random.split(key, 3)
    areas = height * width * jax.random.uniform(area_key, (10,), minval=area[0], maxval=area[1])
    ratios = jnp.exp(jax.random.uniform(ratio_key, (10,), minval=math.log(low), maxval=math.log(high)))
    sizes = jnp.stack([jnp.sqrt(areas / ratios), jnp.sqrt(areas * ratios)], -1)
    image_size = jnp.array([height, width], jnp.float32)
    fits = (sizes <= image_size).all(-1)
    largest = jnp.array([min(height, width / low), min(width, height * high)], jnp.float32)
    size = jnp.where(fits.any(), sizes[fits.argmax()], largest)
    room = jnp.where(fits.any(), image_size - size, 0.0)
    return size, (jax.random.uniform(offset_key, (2,)) - 0.5) * room


def warp_image(image: jax.Array, transform: Affine, fill: int | None = GREY) -> jax.Array:
    """Transform an image, uint8 [H, W, C], with bilinear interpolation.

    Args:
      image: uint8 [H, W, C].
      transform: from output to input coordinates.
      fill: value outside of the image; None repeats the edge pixels.
    """
    coordinates = _input_coordinates(image.shape[:2], transform)

    def warp_channel(values: jax.Array) -> jax.Array:
        mode: dict[str, Any] = {"mode": "nearest"} if fill is None else {"mode": "constant", "cval": fill}
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


def _input_coordinates(shape: tuple[int, ...], transform: Affine) -> list[jax.Array]:
    """Return the input row and column, [H, W] each, that every output pixel is sampled from."""
    center = [(n - 1) / 2 for n in shape]
    y, x = (jnp.arange(n, dtype=jnp.float32) - c for n, c in zip(shape, center, strict=True))
    # Sums, not a matrix product, which some devices compute in low precision.
    return [
        m[0] * y[:, None] + m[1] * x + s + c for m, s, c in zip(transform.matrix, transform.shift, center, strict=True)
    ]
