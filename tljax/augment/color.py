"""The photometric operations of RandAugment (Cubuk et al. 2020, arXiv:1909.13719), as a table of pure functions.

Each takes one uint8 picture [H, W, C], C 1 or 3, and a magnitude, and returns a picture of the same shape. What they
do is what PIL's ImageEnhance and ImageOps do, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Operation(NamedTuple):
    """A row of the table.

    Attributes:
      apply: the function, of a picture and a magnitude.
      neutral: magnitude at which the picture stays as it is.
      low, high: range from which FixMatch draws the magnitude (Sohn et al. 2020, arXiv:2001.07685, table 12).
    """

    apply: Callable[[jax.Array, jax.Array], jax.Array]
    neutral: float
    low: float
    high: float


def identity(image: jax.Array, magnitude: jax.Array) -> jax.Array:
    """The picture itself."""
    return image


def brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Towards black: factor 0 is black, 1 the picture."""
    return _blend(jnp.zeros_like(image), image, factor)


def contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Towards the picture's mean luma: factor 0 is that grey, 1 the picture."""
    return _blend(jnp.round(_luma(image).mean()), image, factor)


def color(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Towards grey: factor 0 is the luma, 1 the picture."""
    return _blend(_luma(image), image, factor)


def sharpness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Towards a 3x3 blur, which leaves the rim alone: factor 0 is the blur, 1 the picture."""
    x = image.astype(jnp.float32)
    (h, w), inner = x.shape[:2], x[1:-1, 1:-1]
    around = sum(x[dy : h - 2 + dy, dx : w - 2 + dx] for dy in range(3) for dx in range(3))
    return _blend(x.at[1:-1, 1:-1].set(jnp.round((around + 4 * inner) / 13)), image, factor)


def autocontrast(image: jax.Array, amount: jax.Array) -> jax.Array:
    """Towards channels stretched to 0..255: amount 0 is the picture, 1 its darkest value at 0 and lightest at 255."""
    x = image.astype(jnp.float32)
    low, high = x.min((0, 1)), x.max((0, 1))
    stretched = (x - low) * 255 / jnp.maximum(high - low, 1)
    return _blend(image, jnp.where(high > low, stretched, x), amount)


def equalize(image: jax.Array, amount: jax.Array) -> jax.Array:
    """Towards channels whose values are all about equally frequent: amount 0 is the picture, 1 the whole way."""
    return _blend(image, jax.vmap(_equalized, -1, -1)(image), amount)


def posterize(image: jax.Array, bits: jax.Array) -> jax.Array:
    """Keeps the highest `bits`, rounded to a whole number, of each value."""
    dropped = (8 - jnp.round(bits)).astype(jnp.uint8)
    return image >> dropped << dropped


def solarize(image: jax.Array, threshold: jax.Array) -> jax.Array:
    """Inverts the values from `threshold` upwards; 256 inverts none."""
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
    """One operation of the table, at a magnitude of its range, brought towards the neutral one.

    Args:
      image: uint8 [H, W, C].
      uniforms: two numbers in [0, 1), the place in the table and that in the range.
      strength: how far to go from the neutral magnitude to the drawn one, 0 to 1.
    """
    table = list((COLOR_OPERATIONS if image.shape[-1] == 3 else OPERATIONS).values())

    def branch(row: Operation) -> Callable[[], jax.Array]:
        magnitude = row.low + (row.high - row.low) * uniforms[1]
        return lambda: row.apply(image, row.neutral + strength * (magnitude - row.neutral))

    return jax.lax.switch((uniforms[0] * len(table)).astype(jnp.int32), [branch(row) for row in table])


def _blend(start: jax.Array, end: jax.Array, share: jax.Array) -> jax.Array:
    """The picture that lies `share` of the way from one to the other."""
    start, end = start.astype(jnp.float32), end.astype(jnp.float32)
    return jnp.clip(jnp.round(start + share * (end - start)), 0, 255).astype(jnp.uint8)


def _luma(image: jax.Array) -> jax.Array:
    """Brightness, [H, W, 1] in whole numbers, by the weights of ITU-R BT.601 (0.299, 0.587, 0.114) in 1/65536."""
    if image.shape[-1] == 1:
        return image
    red, green, blue = jnp.split(image.astype(jnp.int32), 3, -1)
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


def _equalized(channel: jax.Array) -> jax.Array:
    counts = jnp.zeros(256, jnp.int32).at[channel.ravel()].add(1)
    # Pixels per step of the output; 0 where a picture is too small or too plain to be equalized.
    step = (channel.size - counts[channel.max()]) // 255
    table = (step // 2 + jnp.cumsum(counts) - counts) // jnp.maximum(step, 1)
    return jnp.where(step > 0, jnp.minimum(table, 255)[channel], channel)
