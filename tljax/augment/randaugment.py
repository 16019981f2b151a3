"""Weak and strong augmentation of images, sampled independently for every image and step (FixMatch's RandAugment)."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from tljax.augment import affine
from tljax.augment.affine import GREY
from tljax.augment.color import photometric
from tljax.config import AugmentConfig

# Maximum magnitudes at strength 1 (Sohn et al. 2020, arXiv:2001.07685, table 12).
ROTATION = 30.0  # degrees
SHEAR = 0.3  # pixels per pixel
TRANSLATION = 0.3  # share of the side
CUTOUT = 0.5  # share of the side

Augment = Callable[[jax.Array, jax.Array], jax.Array]


def make_weak(config: AugmentConfig, ranges: affine.AffineRanges | None = None) -> Augment:
    """Return a weak augmentation: flip, crop, affine transform and color jitter, as the config has them.

    Args:
      config: which augmentations, and their ranges.
      ranges: of the affine transform and the random resized crop; None: those of the config.

    Returns:
      A pure function (key, images) → images, uint8 [B, H, W, C].
    """
    # Flips and crops move by whole pixels and need no interpolation.
    ranges = (ranges or affine.AffineRanges.from_config(config))._replace(flip=0.0)

    def augment(key: jax.Array, images: jax.Array) -> jax.Array:
        flip_key, crop_key = jax.random.split(key)
        if config.flip:
            flipped = jax.random.bernoulli(flip_key, 0.5, (len(images), 1, 1, 1))
            images = jnp.where(flipped, images[:, :, ::-1], images)
        if config.crop_padding:
            images = _random_crop(crop_key, images, config.crop_padding)
        affine_key, color_key = jax.random.split(jax.random.fold_in(key, 1))
        if not ranges.is_identity:
            keys = jax.random.split(affine_key, len(images))
            transforms = jax.vmap(lambda k: affine.sample_affine(k, ranges, *images.shape[1:3]))(keys)
            images = jax.vmap(affine.warp_image)(images, transforms)
        return color_jitter(color_key, images, config.color)

    return augment


def make_strong(config: AugmentConfig, ranges: affine.AffineRanges | None = None) -> Augment:
    """Return a strong augmentation in the spirit of FixMatch's RandAugment.

    First the weak augmentation. Then, with ranges times `config.strong_magnitude`, an affine transform, two photometric
    operations (`tljax.augment.color`) and a grey square (Cutout, DeVries & Taylor 2017, arXiv:1708.04552) for each
    image. RandAugment samples every operation from one table; here the geometry always changes, in a single
    interpolation, which blurs less than several. Magnitude 0 is the weak augmentation, bit for bit.

    Args:
      config: which augmentations, and their ranges.
      ranges: as of `make_weak`.

    Returns:
      A pure function (key, images) → images, uint8 [B, H, W, C].
    """
    weak = make_weak(config, ranges)
    strength = config.strong_magnitude
    if strength == 0:
        return weak

    def augment(key: jax.Array, images: jax.Array) -> jax.Array:
        weak_key, strong_key = jax.random.split(key)
        uniforms = jax.random.uniform(strong_key, (len(images), 12))
        return map_images(lambda image, u: strong_view(image, u, strength), weak(weak_key, images), uniforms)

    return augment


def strong_view(image: jax.Array, uniforms: jax.Array, strength: float) -> jax.Array:
    """Apply an affine transform, two photometric operations and Cutout to one image.

    Args:
      image: uint8 [H, W, C].
      uniforms: twelve numbers in [0, 1).
      strength: scale of all ranges, 0 to 1.
    """
    affine_uniforms, color_uniforms = jnp.split(uniforms, (5,))
    return _jitter(random_warp(image, affine_uniforms, strength), color_uniforms, strength, cutout=True)


def color_jitter(key: jax.Array, images: jax.Array, strength: float, cutout: bool = False) -> jax.Array:
    """Apply two photometric operations to each image, and optionally Cutout.

    Args:
      key: random key.
      images: uint8 [B, H, W, C].
      strength: scale of all ranges, 0 to 1; 0 returns the images unchanged.
      cutout: whether to add a grey square.
    """
    if strength == 0:
        return images
    uniforms = jax.random.uniform(key, (len(images), 7))
    return map_images(lambda image, u: _jitter(image, u, strength, cutout), images, uniforms)


def _random_crop(key: jax.Array, images: jax.Array, pad: int) -> jax.Array:
    """Crop each image to its size at a random offset, after zero padding of every side."""
    padded = jnp.pad(images, [(0, 0), (pad, pad), (pad, pad), (0, 0)])
    offsets = jax.random.randint(key, (len(images), 2), 0, 2 * pad + 1)
    return jax.vmap(lambda image, yx: jax.lax.dynamic_slice(image, (yx[0], yx[1], 0), images.shape[1:]))(
        padded, offsets
    )


def _jitter(image: jax.Array, uniforms: jax.Array, strength: float, cutout: bool) -> jax.Array:
    first, second, cutout_uniforms = jnp.split(uniforms, (2, 4))
    for operation_uniforms in (first, second):
        image = photometric(image, operation_uniforms, strength)
    return random_cutout(image, cutout_uniforms, strength) if cutout else image


def map_images(function: Callable, images: jax.Array, uniforms: jax.Array) -> jax.Array:
    """Apply `function(image, uniforms)` to every image [B, H, W, C], with its row of `uniforms` [B, ...]."""
    # One image at a time computes only the sampled operation of each. vmap computes every operation for every image:
    # more work, but without the sequential loop that would leave an accelerator idle.
    sequential = functools.partial(jax.lax.map, lambda pair: function(*pair))
    return jax.lax.platform_dependent(
        (images, uniforms), cpu=sequential, default=lambda pair: jax.vmap(function)(*pair)
    )


def random_warp(image: jax.Array, uniforms: jax.Array, strength: float) -> jax.Array:
    """Rotate, shear along both axes and translate one image [H, W, C], by five numbers in [0, 1)."""
    turn, shear_y, shear_x, *translation = strength * (2 * uniforms - 1)
    angle = jnp.deg2rad(ROTATION * turn)
    sin = jnp.sin(angle)
    cos = jnp.cos(angle)
    a = SHEAR * shear_y
    b = SHEAR * shear_x
    # Rotation times the shears [[1, a], [0, 1]] and [[1, 0], [b, 1]]: the determinant is 1, so areas are preserved.
    matrix = jnp.array([[cos * (1 + a * b) - sin * b, cos * a - sin], [sin * (1 + a * b) + cos * b, sin * a + cos]])
    shift = TRANSLATION * jnp.array(translation) * jnp.array(image.shape[:2])
    # Repeat the edge pixels: a fill color would change the statistics that contrast and equalize depend on.
    return affine.warp_image(image, affine.Affine(matrix, shift), fill=None)


def random_cutout(image: jax.Array, uniforms: jax.Array, strength: float) -> jax.Array:
    """Draw a grey square on one image [H, W, C], by three numbers in [0, 1) for its side and center."""
    shape = jnp.array(image.shape[:2])
    half_side = uniforms[0] * CUTOUT * strength * shape.min() / 2
    center = uniforms[1:] * shape
    y, x = (jnp.abs(jnp.arange(n) + 0.5 - c) < half_side for n, c in zip(image.shape[:2], center, strict=True))
    return jnp.where((y[:, None] & x)[..., None], jnp.uint8(GREY), image)
