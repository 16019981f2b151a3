"""Operations of `augment.ops`: functions (key, batch, value) → batch that run inside the compiled step.

A batch has uint8 `image` [B, H, W, C]. With labelled images it also has the targets of the task, of which an operation
that moves pixels must transform those with locations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tljax import plugins
from tljax.augment.randaugment import color_jitter, map_images, random_cutout
from tljax.config import AugmentConfig
from tljax.errors import UserError, did_you_mean

Batch = Mapping[str, jax.Array]
Op = Callable[[jax.Array, Batch, float], Batch]

# Key stream of the first operation; the keys of the other augmentations are below it.
_FIRST_STREAM = 1 << 16


def color(key: jax.Array, batch: Batch, value: float) -> dict[str, jax.Array]:
    """Apply two photometric operations to each image, with FixMatch's ranges times `value`."""
    return {**batch, "image": color_jitter(key, batch["image"], value)}


def cutout(key: jax.Array, batch: Batch, value: float) -> dict[str, jax.Array]:
    """Draw a grey square on each image, with a random side of up to half of the image's times `value`."""
    uniforms = jax.random.uniform(key, (len(batch["image"]), 3))
    images = map_images(lambda image, u: random_cutout(image, u, value), batch["image"], uniforms)
    return {**batch, "image": images}


def grayscale(key: jax.Array, batch: Batch, value: float) -> dict[str, jax.Array]:
    """Replace each image by its mean over the channels, with probability `value`."""
    images = batch["image"]
    gray = jnp.round(images.astype(jnp.float32).mean(-1, keepdims=True)).astype(images.dtype)
    chosen = jax.random.bernoulli(key, value, (len(images), 1, 1, 1))
    return {**batch, "image": jnp.where(chosen, gray, images)}


OPS: dict[str, Op] = {"color": color, "cutout": cutout, "grayscale": grayscale}


def get_op(name: str) -> Op:
    """Return an operation.

    Args:
      name: key of `OPS`, or `FILE.py:NAME` for a custom one.

    Raises:
      UserError: there is no such operation, or the name in the file is not a function (key, batch, value).
    """
    if name in OPS:
        return OPS[name]
    if not plugins.is_plugin(name):
        raise UserError(f'augment.ops: there is no "{name}"{did_you_mean(name, OPS)}')
    op = plugins.load_plugin(name, "augmentation")
    if not callable(op) or not plugins.accepts(op, None, {}, 1.0):
        kind = "a function of other arguments" if callable(op) else type(op).__name__
        raise UserError(f"{name} is not an augmentation: it must be a function (key, batch, value), got {kind}.")
    return op


def op_files(config: AugmentConfig) -> tuple[str, ...]:
    """Return the SHA-256 of the files of the custom operations."""
    return tuple(plugins.plugin_hashes(name for name, _ in config.ops).values())


def apply_ops(ops: Sequence[tuple[str, float]], key: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """Apply operations in order, each with its own random key.

    Args:
      ops: pairs of name and value, from `augment.ops`.
      key: random key of the view.
      batch: uint8 `image` [B, H, W, C], and the targets if the images are labelled.

    Raises:
      UserError: an operation changes names, dtypes or the shape of the images.
    """
    batch = dict(batch)
    for i, (name, value) in enumerate(ops):
        result = get_op(name)(jax.random.fold_in(key, _FIRST_STREAM + i), dict(batch), value)
        _check_batch(name, batch, result)
        batch = dict(result)
    return batch


def _check_batch(name: str, before: Batch, after: Any) -> None:
    if not isinstance(after, Mapping) or set(after) != set(before):
        got = sorted(after) if isinstance(after, Mapping) else type(after).__name__
        raise UserError(f"{name} must return a batch with the entries {', '.join(sorted(before))}, got {got}.")
    image, old = after["image"], before["image"]
    if getattr(image, "shape", None) != old.shape or image.dtype != old.dtype:
        got = f"{image.dtype}{list(image.shape)}" if hasattr(image, "shape") else type(image).__name__
        raise UserError(f"{name} must return images {old.dtype}{list(old.shape)}, got {got}.")
