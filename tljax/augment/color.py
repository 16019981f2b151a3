"""The photometric operations of RandAugment (Cubuk et al. 2020, arXiv:1909.13719), as a table of pure functions.

Each takes one image, uint8 [H, W, C] with C 1 or 3, and a magnitude, and returns an image of the same shape. They match
PIL's ImageEnhance and ImageOps up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Operation(NamedTuple):
    """A photometric operation and its magnitudes.

    Attributes:
      apply: (image, magnitude) → image.
      neutral: magnitude that leaves the image unchanged.
      low: minimum magnitude in FixMatch (Sohn et al. 2020, arXiv:2001.07685, table 12).
      high: maximum magnitude in FixMatch.
    """

    apply: Callable[[jax.Array, jax.Array], jax.Array]
    neutral: float
    low: float
    high: float


def identity(image: jax.Array, magnitude: jax.Array) -> jax.Array:
    """Return the image unchanged."""
    return image


def brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blend with black: factor 0 is black, 1 the image."""
    return _blend(jnp.zeros_like(image), image, factor)


def contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blend with the mean luma: factor 0 is uniform grey, 1 the image."""
    return _blend(jnp.round(_luma(image).mean()), image, factor)


def color(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blend with the greyscale image: factor 0 is the luma, 1 the image."""
    return _blend(_luma(image), image, factor)


def sharpness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blend with a 3x3 blur of all but the outermost pixels: factor 0 is the blur, 1 the image."""
    x = image.astype(jnp.float32)
    height, width = x.shape[:2]
    inner = x[1:-1, 1:-1]
    box_sum = sum(x[dy : height - 2 + dy, dx : width - 2 + dx] for dy in range(3) for dx in range(3))
    return _blend(x.at[1:-1, 1:-1].set(jnp.round((box_sum + 4 * inner) / 13)), image, factor)


def autocontrast(image: jax.Array, amount: jax.Array) -> jax.Array:
    """Blend with channels that are stretched to the range 0..255: amount 0 is the image, 1 the full range."""
    x = image.astype(jnp.float32)
    low = x.min((0, 1))
    high = x.max((0, 1))
    stretched = (x - low) * 255 / jnp.maximum(high - low, 1)
    return _blend(image, jnp.where(high > low, stretched, x), amount)


def equalize(image: jax.Array, amount: jax.Array) -> jax.Array:
    """Blend with the histogram-equalized channels: amount 0 is the image, 1 is fully equalized."""
    return _blend(image, jax.vmap(_equalize_channel, -1, -1)(image), amount)


def posterize(image: jax.Array, bits: jax.Array) -> jax.Array:
    """Keep the highest `bits` (rounded to an integer) of each value."""
    dropped = (8 - jnp.round(bits)).astype(jnp.uint8)
    return image >> dropped << dropped


def solarize(image: jax.Array, threshold: jax.Array) -> jax.Array:
    """Invert the values of at least `threshold`; 256 inverts none."""
    return jnp.where(image < threshold, image, 255 - image)


OPERATIONS = {
    "identity": Operation(identity, 0.0, 0.0, 0.0),
    "brightness": Operation(brightness, 1.0, 0.05, 0.95),
    "contrast": Operation(contrast, 1.0, 0.05, 0.95),
    "sharpness": Operation(sharpness, 1.0, 0.05, 0.95),
    "autocontrast": Operation(autocontrast, 0.0, 1.0, 1.0),
    "equalize": Operation(equalize, 0.0, 1.0, 1.0),
    "posterize": Operation(posterize, 8.0, 4.0, 8.0),
    "solarize": Operation(solarize, 256.0, 0.0, 256.0),
}
COLOR_OPERATIONS = OPERATIONS | {"color": Operation(color, 1.0, 0.05, 0.95)}


def photometric(image: jax.Array, uniforms: jax.Array, strength: float) -> jax.Array:
    """Apply a random operation at a random magnitude of its range, interpolated with the neutral magnitude.

    Args:
      image: uint8 [H, W, C].
      uniforms: two numbers in [0, 1), which select the operation and the magnitude.
      strength: 0 is the neutral magnitude, 1 the sampled one.
    """
    operations = list((COLOR_OPERATIONS if image.shape[-1] == 3 else OPERATIONS).values())

    def branch(operation: Operation) -> Callable[[], jax.Array]:
        magnitude = operation.low + (operation.high - operation.low) * uniforms[1]
        return lambda: operation.apply(image, operation.neutral + strength * (magnitude - operation.neutral))

    index = (uniforms[0] * len(operations)).astype(jnp.int32)
    return jax.lax.switch(index, [branch(operation) for operation in operations])


def _blend(start: jax.Array, end: jax.Array, weight: jax.Array) -> jax.Array:
    """Interpolate between two images: weight 0 is `start`, 1 is `end`."""
    start = start.astype(jnp.float32)
    end = end.astype(jnp.float32)
    return jnp.clip(jnp.round(start + weight * (end - start)), 0, 255).astype(jnp.uint8)


def _luma(image: jax.Array) -> jax.Array:
    """Return the luma as integers [H, W, 1], with the weights of ITU-R BT.601 (0.299, 0.587, 0.114) in 1/65536."""
    if image.shape[-1] == 1:
        return image
    red, green, blue = jnp.split(image.astype(jnp.int32), 3, -1)
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


def _equalize_channel(channel: jax.Array) -> jax.Array:
    """Equalize the histogram of one channel, uint8 [H, W]."""
    counts = jnp.zeros(256, jnp.int32).at[channel.ravel()].add(1)
    # Pixels per output level; 0 if the image is too small or too uniform to be equalized.
    step = (channel.size - counts[channel.max()]) // 255
    table = (step // 2 + jnp.cumsum(counts) - counts) // jnp.maximum(step, 1)
    return jnp.where(step > 0, jnp.minimum(table, 255)[channel], channel)
