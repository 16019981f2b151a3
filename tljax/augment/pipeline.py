"""Weak and strong views of training batches: images together with their masks, boxes and weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from tljax.augment import affine
from tljax.augment.ops import apply_ops, color
from tljax.augment.randaugment import color_jitter, make_strong, make_weak
from tljax.config import AugmentConfig

Arrays = Mapping[str, jax.Array]
# Minimum share of a box's area that must remain inside the image.
MIN_VISIBLE = 0.2


def make_augment(
    config: AugmentConfig, side: int | None, crop_share: float = 1.0
) -> dict[str, Callable[[jax.Array, Arrays], dict]]:
    """Return the augmentations of a training batch.

    Args:
      config: which augmentations, and their ranges.
      side: height and width of the network's input, whose pixels `boxes` are in, for tasks whose targets have locations
        in the image: each image is transformed together with its `label`, `boxes` and `weight`, and weak and strong
        views with the same key have the same geometry. None for classification: only the images change, and views with
        the same key may differ in geometry.
      crop_share: share of each side of an image that the network sees, its center; random crops are put there.

    Returns:
      {"weak", "strong"}: pure functions (key, batch) → batch. Both end with the operations of `config.ops`.
    """
    ranges = affine.AffineRanges.from_config(config)._replace(crop_share=crop_share)
    augment = _make_image_augment(config, ranges) if side is None else _make_spatial_augment(config, ranges, side)
    if not config.ops:
        return augment

    def add_ops(view: Callable[[jax.Array, Arrays], dict]) -> Callable[[jax.Array, Arrays], dict]:
        return lambda key, batch: apply_ops(config.ops, key, view(key, batch))

    return {name: add_ops(view) for name, view in augment.items()}


def _make_image_augment(
    config: AugmentConfig, ranges: affine.AffineRanges
) -> dict[str, Callable[[jax.Array, Arrays], dict]]:
    weak = make_weak(config, ranges)
    strong = make_strong(config, ranges)
    return {
        "weak": lambda key, batch: {**batch, "image": weak(key, batch["image"])},
        "strong": lambda key, batch: {**batch, "image": strong(key, batch["image"])},
    }


def _make_spatial_augment(
    config: AugmentConfig, ranges: affine.AffineRanges, side: int
) -> dict[str, Callable[[jax.Array, Arrays], dict]]:
    pad = config.crop_padding

    def weak(key: jax.Array, batch: Arrays) -> dict:
        mosaic_key, affine_key, color_key = jax.random.split(key, 3)
        if config.mosaic:
            batch = mosaic(mosaic_key, batch, config.mosaic, side)
        count, height, width, _ = batch["image"].shape
        if not ranges.is_identity or pad:
            keys = jax.random.split(affine_key, count)
            transforms = jax.vmap(lambda k: affine.sample_affine(k, ranges, height, width))(keys)
            if pad:
                crop_key = jax.random.fold_in(affine_key, 1)
                offsets = jax.random.randint(crop_key, (count, 2), -pad, pad + 1)
                transforms = transforms._replace(shift=transforms.shift + offsets)
            batch = warp_batch(batch, transforms, side)
        return color(color_key, batch, config.color)

    def strong(key: jax.Array, batch: Arrays) -> dict:
        batch = weak(key, batch)
        strong_key = jax.random.fold_in(key, 1)
        images = color_jitter(strong_key, batch["image"], config.strong_magnitude, cutout=True)
        return {**batch, "image": images}

    return {"weak": weak, "strong": strong}


def warp_batch(batch: Arrays, transforms: affine.Affine, side: int) -> dict:
    """Transform the images of a batch and their targets.

    Args:
      batch: `image` uint8 [B, H, W, C]; optionally `label`, `boxes`, `weight`.
      transforms: one for each image, with a leading axis [B].
      side: height and width of the network's input, whose pixels `boxes` are in.

    Returns:
      The batch; boxes of which less than `MIN_VISIBLE` remains have the label -1.
    """
    images = batch["image"]
    height, width = images.shape[1:3]
    changed = {"image": jax.vmap(affine.warp_image)(images, transforms)}
    if "boxes" in batch:
        scale = _image_to_input_scale(images, side)

        def warp_boxes(boxes: jax.Array, transform: affine.Affine) -> tuple[jax.Array, jax.Array]:
            return affine.warp_boxes(boxes, transform, height, width, MIN_VISIBLE)

        boxes, visible = jax.vmap(warp_boxes)(batch["boxes"] / scale, transforms)
        changed |= {"boxes": boxes * scale, "label": jnp.where(visible, batch["label"], -1)}
    elif "label" in batch:
        changed["label"] = jax.vmap(affine.warp_mask)(batch["label"], transforms)
    if "weight" in batch:
        changed["weight"] = jax.vmap(affine.warp_weights)(batch["weight"], transforms)
    return {**batch, **changed}


def mosaic(key: jax.Array, batch: Arrays, probability: float, side: int) -> dict:
    """Replace some images by a mosaic of four images of the batch at half size (Bochkovskiy et al. 2020).

    arXiv:2004.10934, without the random crop.

    Args:
      key: random key.
      batch: `image` uint8 [B, H, W, C]; optionally `label`, `boxes`, `weight`.
      probability: of a mosaic, for each image.
      side: height and width of the network's input, whose pixels `boxes` are in.

    Returns:
      The batch, with four times as many box slots for each image.
    """
    images = batch["image"]
    height, width = images.shape[1:3]
    is_mosaic = jax.random.bernoulli(key, probability, (len(images),))
    corners = [(y, x) for y in (0, height - height // 2) for x in (0, width - width // 2)]
    changed = {}
    for name in ("image", "label", "weight"):
        if name in batch and batch[name].ndim > 2:
            changed[name] = _mosaic_pixels(batch[name], corners, is_mosaic, average=name == "image")
    if "boxes" in batch:
        boxes, labels = _mosaic_boxes(batch, corners, side)
        slots = batch["label"].shape[1]
        padding = [(0, 0), (0, 3 * slots)]
        single_boxes = jnp.pad(batch["boxes"], [*padding, (0, 0)])
        single_labels = jnp.pad(batch["label"], padding, constant_values=-1)
        changed["boxes"] = jnp.where(is_mosaic[:, None, None], boxes, single_boxes)
        changed["label"] = jnp.where(is_mosaic[:, None], labels, single_labels)
    return {**batch, **changed}


def _mosaic_pixels(values: jax.Array, corners: list[tuple[int, int]], is_mosaic: jax.Array, average: bool) -> jax.Array:
    """Return images, masks or weights [B, H, W, ...] with mosaics where `is_mosaic`.

    Args:
      values: [B, H, W, ...].
      corners: row and column of each of the four images in the mosaic.
      is_mosaic: bool [B].
      average: whether to downsample by averaging 2 x 2 pixels, rather than taking every other pixel.
    """
    count, height, width = values.shape[:3]
    even = values[:, : height // 2 * 2, : width // 2 * 2]
    if average:
        blocks = even.astype(jnp.float32).reshape(count, height // 2, 2, width // 2, 2, *values.shape[3:])
        half = jnp.round(blocks.mean((2, 4))).astype(values.dtype)
    else:
        half = even[:, ::2, ::2]
    mosaics = values
    for i, corner in enumerate(corners):
        start = (0, *corner, *(0,) * (values.ndim - 3))
        mosaics = jax.lax.dynamic_update_slice(mosaics, jnp.roll(half, i, 0), start)
    return jnp.where(is_mosaic.reshape(-1, *(1,) * (values.ndim - 1)), mosaics, values)


def _mosaic_boxes(batch: Arrays, corners: list[tuple[int, int]], side: int) -> tuple[jax.Array, jax.Array]:
    """Return the boxes [B, 4 M, 4] and labels [B, 4 M] of all mosaics."""
    height, width = batch["image"].shape[1:3]
    scale = _image_to_input_scale(batch["image"], side)
    shrink = jnp.array([height // 2 / height, width // 2 / width] * 2, jnp.float32)
    boxes = [
        jnp.roll(batch["boxes"], i, 0) * shrink + jnp.array([*corner, *corner], jnp.float32) * scale
        for i, corner in enumerate(corners)
    ]
    labels = [jnp.roll(batch["label"], i, 0) for i in range(len(corners))]
    return jnp.concatenate(boxes, 1), jnp.concatenate(labels, 1)


def _image_to_input_scale(images: jax.Array, side: int) -> jax.Array:
    """Return the factors [4] from pixels of the images to pixels of the network's input, for boxes."""
    height, width = images.shape[1:3]
    return jnp.array([side / height, side / width] * 2, jnp.float32)
