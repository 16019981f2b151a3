"""Augmentation on the device, drawn anew for every picture of every step: weak, and strong for unlabelled pictures."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from tljax.augment import affine
from tljax.augment.affine import GREY
from tljax.augment.color import photometric
from tljax.config import AugmentConfig

# Largest magnitudes at strength 1 (Sohn et al. 2020, arXiv:2001.07685, table 12): degrees; pixels per pixel; shares of
# the picture's side.
ROTATION, SHEAR, TRANSLATION, CUTOUT = 30.0, 0.3, 0.3, 0.5

Augment = Callable[[jax.Array, jax.Array], jax.Array]


def make_weak(config: AugmentConfig) -> Augment:
    """Returns a pure function of a key and uint8 pictures [B, H, W, C]: the same shape, changed at random."""
    # What moves by whole pixels is not interpolated.
    ranges = affine.AffineRanges.of(config)._replace(flip=0.0)

    def augment(key: jax.Array, images: jax.Array) -> jax.Array:
        flip_key, crop_key = jax.random.split(key)
        if config.flip:
            flipped = jax.random.bernoulli(flip_key, 0.5, (len(images), 1, 1, 1))
            images = jnp.where(flipped, images[:, :, ::-1], images)
        if pad := config.crop_padding:
            padded = jnp.pad(images, [(0, 0), (pad, pad), (pad, pad), (0, 0)])
            corners = jax.random.randint(crop_key, (len(images), 2), 0, 2 * pad + 1)
            images = jax.vmap(lambda x, yx, like: jax.lax.dynamic_slice(x, (yx[0], yx[1], 0), like.shape))(
                padded, corners, images
            )
        warp_key, colour_key = jax.random.split(jax.random.fold_in(key, 1))
        if ranges != affine.AffineRanges():
            keys = jax.random.split(warp_key, len(images))
            warps = jax.vmap(lambda k: affine.sample_affine(k, ranges, *images.shape[1:3]))(keys)
            images = jax.vmap(affine.warp_image)(images, warps)
        return color_jitter(colour_key, images, config.color)

    return augment


def make_strong(config: AugmentConfig) -> Augment:
    """Strong augmentation in the spirit of FixMatch's RandAugment, as `make_weak` returns it.

    The weak augmentation comes first. Then each picture gets, at ranges times `config.strength`, an affine warp, two
    photometric operations (`tljax.augment.color`) and a grey square (Cutout, DeVries & Taylor 2017,
    arXiv:1708.04552). Unlike RandAugment, which draws every operation from one table, geometry is always changed, and
    all of it by one interpolation, which blurs less than one after another. Strength 0 is the weak augmentation, bit
    for bit.
    """
    weak, strength = make_weak(config), config.strong_magnitude
    if strength == 0:
        return weak

    def augment(key: jax.Array, images: jax.Array) -> jax.Array:
        weak_key, strong_key = jax.random.split(key)
        drawn = jax.random.uniform(strong_key, (len(images), 12))
        return _each(lambda image, numbers: strong_view(image, numbers, strength), weak(weak_key, images), drawn)

    return augment


def strong_view(image: jax.Array, uniforms: jax.Array, strength: float) -> jax.Array:
    """One picture, uint8 [H, W, C], warped, changed twice and covered, by twelve numbers `drawn` in [0, 1)."""
    for_warp, rest = jnp.split(uniforms, (5,))
    return _jittered(random_warp(image, for_warp, strength), rest, strength, cover=True)


def color_jitter(key: jax.Array, images: jax.Array, magnitude: float, cover: bool = False) -> jax.Array:
    """Two photometric operations, and with `cover` a grey square, on each of uint8 pictures [B, H, W, C].

    Everything stays where it is; strength 0 leaves the pictures as they are.
    """
    if magnitude == 0:
        return images
    drawn = jax.random.uniform(key, (len(images), 7))
    return _each(lambda image, numbers: _jittered(image, numbers, magnitude, cover), images, drawn)


def _jittered(image: jax.Array, uniforms: jax.Array, strength: float, cover: bool) -> jax.Array:
    first, second, for_cutout = jnp.split(uniforms, (2, 4))
    for place_and_magnitude in (first, second):
        image = photometric(image, place_and_magnitude, strength)
    return random_cutout(image, for_cutout, strength) if cover else image


def _each(change: Callable, images: jax.Array, drawn: jax.Array) -> jax.Array:
    """`change(image, numbers)` of every picture."""
    # Picture after picture, only the operations drawn are computed. All at once, every one of the table is, for
    # every picture: more work, but no branches, one picture at a time, which would leave an accelerator idle.
    one_by_one = functools.partial(jax.lax.map, lambda pair: change(*pair))
    return jax.lax.platform_dependent((images, drawn), cpu=one_by_one, default=lambda pair: jax.vmap(change)(*pair))


def random_warp(image: jax.Array, uniforms: jax.Array, strength: float) -> jax.Array:
    """Rotates, shears along both axes and translates one picture [H, W, C] by five numbers `drawn` in [0, 1)."""
    turn, along_y, along_x, *move = strength * (2 * uniforms - 1)
    sin, cos = jnp.sin(jnp.deg2rad(ROTATION * turn)), jnp.cos(jnp.deg2rad(ROTATION * turn))
    a, b = SHEAR * along_y, SHEAR * along_x
    # Rotation times the shears [[1, a], [0, 1]] and [[1, 0], [b, 1]], which leaves areas as they are.
    matrix = jnp.array([[cos * (1 + a * b) - sin * b, cos * a - sin], [sin * (1 + a * b) + cos * b, sin * a + cos]])
    # Beyond the edge a colour of its own would shift the statistics that contrast and equalisation go by.
    warp = affine.Affine(matrix, TRANSLATION * jnp.array(move) * jnp.array(image.shape[:2]))
    return affine.warp_image(image, warp, fill=None)


def random_cutout(image: jax.Array, uniforms: jax.Array, strength: float) -> jax.Array:
    """A GREY square on one picture [H, W, C] by three numbers `drawn` in [0, 1), its side and where its centre is."""
    shape = jnp.array(image.shape[:2])
    half, centre = uniforms[0] * CUTOUT * strength * shape.min() / 2, uniforms[1:] * shape
    y, x = (jnp.abs(jnp.arange(n) + 0.5 - c) < half for n, c in zip(image.shape[:2], centre, strict=True))
    return jnp.where((y[:, None] & x)[..., None], jnp.uint8(GREY), image)
