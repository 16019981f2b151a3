"""Custom augmentations: random erasing (Zhong et al. 2020, arXiv:1708.04896) and Gaussian noise.

    python run.py --config=examples/augmentation.py

docs/extending.md describes the contract.
"""

import jax
import jax.numpy as jnp

from tljax import config as schema

# Of the erased rectangle, as in the paper: share of the image's area, and height over width.
AREA = (0.02, 0.4)
ASPECT = (0.3, 1 / 0.3)


def random_erasing(key, batch, value):
    """Replace a rectangle of each image by random pixels, with probability `value`."""
    images = batch["image"]
    count, height, width, _ = images.shape
    uniforms = jax.random.uniform(jax.random.fold_in(key, 0), (count, 5))
    area = height * width * (AREA[0] + uniforms[:, 0] * (AREA[1] - AREA[0]))
    aspect = jnp.exp(jnp.log(ASPECT[0]) + uniforms[:, 1] * jnp.log(ASPECT[1] / ASPECT[0]))
    rows = _inside(height, jnp.sqrt(area * aspect), uniforms[:, 2])
    columns = _inside(width, jnp.sqrt(area / aspect), uniforms[:, 3])
    erased = rows[:, :, None] & columns[:, None, :] & (uniforms[:, 4] < value)[:, None, None]
    noise = jax.random.randint(jax.random.fold_in(key, 1), images.shape, 0, 256).astype(images.dtype)
    return {**batch, "image": jnp.where(erased[..., None], noise, images)}


def _inside(side, length, position):
    """Return bool [B, side]: which pixels are inside an interval of `length` [B] at a relative `position` [B]."""
    start = (position * jnp.maximum(side - length, 0))[:, None]
    pixels = jnp.arange(side) + 0.5
    return (pixels >= start) & (pixels < start + length[:, None])


def gaussian_noise(key, batch, value):
    """Add noise of standard deviation `value`, for pixel values in 0..255."""
    noisy = batch["image"] + value * jax.random.normal(key, batch["image"].shape)
    return {**batch, "image": jnp.clip(jnp.round(noisy), 0, 255).astype(batch["image"].dtype)}


def get_config():
    """Train a small ResNet on augmented digits: padded crops first, then the custom operations in order."""
    c = schema.default()
    c.model.backbone = "resnet8"
    c.strategy.name = "scratch"
    c.augment.crop_padding = 1
    c.augment.ops = (("examples/augmentation.py:random_erasing", 0.5), ("examples/augmentation.py:gaussian_noise", 8.0))
    c.train.epochs = 6
    return c
