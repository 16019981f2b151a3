"""Views of training pictures with all that lies on them, drawn anew on the device in every step."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from tljax.augment import affine
from tljax.augment.randaugment import color_jitter, make_strong, make_weak
from tljax.config import AugmentConfig

Arrays = Mapping[str, jax.Array]
# Of a box that reaches over the edge, at least this share must be left on the picture.
MIN_VISIBLE = 0.2


def make_augment(config: AugmentConfig, side: int | None) -> dict[str, Callable[[jax.Array, Arrays], dict]]:
    """Returns "weak" and "strong", pure functions of a key and a batch, which give the batch with its pictures changed.

    Args:
      config: what is drawn.
      side: of the network's input, whose pixels a batch's `boxes` are in, where something lies on the pictures: then
        one warp is drawn for each picture with its `label`, `boxes` and `weight`, and weak and strong views by the same
        key show everything at the same places. None: pictures have classes, and views of a key need not agree.
    """
    if side is None:
        weak, strong = make_weak(config), make_strong(config)
        return {
            "weak": lambda key, batch: {**batch, "image": weak(key, batch["image"])},
            "strong": lambda key, batch: {**batch, "image": strong(key, batch["image"])},
        }

    def weak(key: jax.Array, batch: Arrays) -> dict:
        mosaic_key, warp_key, colour_key = jax.random.split(key, 3)
        if config.mosaic:
            batch = mosaic(mosaic_key, batch, config.mosaic, side)
        count, height, width, _ = batch["image"].shape
        ranges, pad = affine.AffineRanges.of(config), config.crop_padding
        if ranges != affine.AffineRanges() or pad:
            keys = jax.random.split(warp_key, count)
            warps = jax.vmap(lambda k: affine.sample_affine(k, ranges, height, width))(keys)
            if pad:
                shifts = jax.random.randint(jax.random.fold_in(warp_key, 1), (count, 2), -pad, pad + 1)
                warps = warps._replace(shift=warps.shift + shifts)
            batch = warp_batch(batch, warps, side)
        return {**batch, "image": color_jitter(colour_key, batch["image"], config.color)}

    def strong(key: jax.Array, batch: Arrays) -> dict:
        batch = weak(key, batch)
        return {
            **batch,
            "image": color_jitter(jax.random.fold_in(key, 1), batch["image"], config.strong_magnitude, cover=True),
        }

    return {"weak": weak, "strong": strong}


def warp_batch(batch: Arrays, transforms: affine.Affine, side: int) -> dict:
    """A batch with its pictures, and what lies on them, each warped by its own of `warps`."""
    images = batch["image"]
    changed = {"image": jax.vmap(affine.warp_image)(images, transforms)}
    if "boxes" in batch:
        scale = _scale(images, side)

        def moved(given: jax.Array, warp: affine.Affine) -> tuple[jax.Array, jax.Array]:
            return affine.warp_boxes(given, warp, *images.shape[1:3], MIN_VISIBLE)

        boxes, left = jax.vmap(moved)(batch["boxes"] / scale, transforms)
        changed |= {"boxes": boxes * scale, "label": jnp.where(left, batch["label"], -1)}
    elif "label" in batch:
        changed["label"] = jax.vmap(affine.warp_mask)(batch["label"], transforms)
    if "weight" in batch:
        changed["weight"] = jax.vmap(affine.warp_weights)(batch["weight"], transforms)
    return {**batch, **changed}


def mosaic(key: jax.Array, batch: Arrays, chance: float, side: int) -> dict:
    """Some pictures become four of the batch at half their sides, in the corners (Bochkovskiy et al. 2020).

    arXiv:2004.10934, without their random crop. Boxes have room for those of four pictures afterwards.
    """
    images = batch["image"]
    height, width = images.shape[1:3]
    drawn = jax.random.bernoulli(key, chance, (len(images),))
    corners = [(y, x) for y in (0, height - height // 2) for x in (0, width - width // 2)]
    changed = {}
    for name in ("image", "label", "weight"):
        if name in batch and batch[name].ndim > 2:
            whole = batch[name]
            halves = whole[:, : height // 2 * 2 : 2, : width // 2 * 2 : 2]
            if name == "image":
                even = whole[:, : height // 2 * 2, : width // 2 * 2].astype(jnp.float32)
                shape = len(whole), height // 2, 2, width // 2, 2, whole.shape[-1]
                halves = jnp.round(even.reshape(shape).mean((2, 4))).astype(whole.dtype)
            made = whole
            for i, corner in enumerate(corners):
                start = (0, *corner, *(0,) * (whole.ndim - 3))
                made = jax.lax.dynamic_update_slice(made, jnp.roll(halves, i, 0), start)
            changed[name] = jnp.where(drawn.reshape(-1, *(1,) * (whole.ndim - 1)), made, whole)
    if "boxes" in batch:
        scale, label = _scale(images, side), batch["label"]
        shrink = jnp.array([height // 2 / height, width // 2 / width] * 2, jnp.float32)
        parts = [
            jnp.roll(batch["boxes"], i, 0) * shrink + jnp.array([*corner, *corner], jnp.float32) * scale
            for i, corner in enumerate(corners)
        ]
        labels = [jnp.roll(label, i, 0) for i in range(4)]
        missing = [(0, 0), (0, 3 * label.shape[1])]
        alone = jnp.pad(batch["boxes"], [*missing, (0, 0)]), jnp.pad(label, missing, constant_values=-1)
        changed["boxes"] = jnp.where(drawn[:, None, None], jnp.concatenate(parts, 1), alone[0])
        changed["label"] = jnp.where(drawn[:, None], jnp.concatenate(labels, 1), alone[1])
    return {**batch, **changed}


def _scale(images: jax.Array, side: int) -> jax.Array:
    """From pixels of the pictures to those of the input, for boxes."""
    height, width = images.shape[1:3]
    return jnp.array([side / height, side / width] * 2, jnp.float32)
