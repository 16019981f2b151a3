"""Augmentation on the device, drawn anew for every picture of every step."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from tljax.config import AugmentConfig


def make_augment(config: AugmentConfig) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns a pure function of a key and uint8 pictures [B, H, W, C]: the same shape, changed at random."""

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
        return images

    return augment
