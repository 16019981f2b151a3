"""Augmentation of images with masks and boxes: targets are transformed with their images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tljax.augment.pipeline import make_augment
from tljax.config import AugmentConfig
from tljax.losses.pixelwise import IGNORED

SIDE = 64  # of the network's input; images have half of it
LABELS = np.array([[0, -1]] * 4, np.int32)


def make_scenes(count=4, side=32):
    """Return grey images with one bright rectangle each, their masks, and boxes in pixels of the input."""
    rng = np.random.default_rng(0)
    images = np.full((count, side, side, 3), 40, np.uint8)
    masks = np.zeros((count, side, side), np.uint8)
    boxes = np.zeros((count, 2, 4), np.float32)
    for i in range(count):
        y0, x0 = rng.integers(6, 12, 2)
        y1, x1 = rng.integers(18, 26, 2)
        images[i, y0:y1, x0:x1] = 220
        masks[i, y0:y1, x0:x1] = 1
        boxes[i, 0] = np.array([y0, x0, y1, x1]) * SIDE / side
    return images, masks, boxes


def bounding_box(mask):
    rows, columns = np.nonzero(mask)
    return np.array([rows.min(), columns.min(), rows.max() + 1, columns.max() + 1], np.float32)


OPTIONS = (
    {"flip": True, "crop_padding": 3},
    {"flip": True, "scale": (0.7, 1.3), "translate": 0.15},
    {"scale": (0.8, 1.2), "mosaic": 0.5},
)
WEAK = [jax.jit(make_augment(AugmentConfig(**options), SIDE)["weak"]) for options in OPTIONS]


@settings(deadline=None, max_examples=15)
@given(st.integers(0, len(OPTIONS) - 1), st.integers(0, 99))
def test_weak_transforms_image_mask_and_boxes_together(index, seed):
    images, masks, boxes = make_scenes()
    key = jax.random.key(seed)
    with_masks = WEAK[index](key, {"image": images, "label": masks})
    with_boxes = WEAK[index](key, {"image": images, "label": LABELS, "boxes": boxes})
    np.testing.assert_array_equal(with_masks["image"], with_boxes["image"])
    columns = (with_masks["image"], with_masks["label"], with_boxes["label"], with_boxes["boxes"])
    for image, mask, label, box in zip(*map(np.asarray, columns), strict=True):
        bright = image[..., 0] > 130  # a half-covered edge pixel may be on either side of the threshold
        assert (bright == (mask == 1))[mask != IGNORED].mean() > 0.93
        visible = box[label >= 0] / 2
        if "mosaic" not in OPTIONS[index]:
            assert len(visible) == 1
            np.testing.assert_allclose(visible[0], bounding_box(mask == 1), atol=1.01)


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_strong_has_geometry_of_weak(mosaic):
    images, masks, _ = make_scenes()
    config = AugmentConfig(flip=True, rotate=30.0, translate=0.1, mosaic=mosaic, strong_magnitude=1.0)
    augment = make_augment(config, SIDE)
    key = jax.random.key(3)
    weak, strong = (augment[name](key, {"image": images, "label": masks}) for name in ("weak", "strong"))
    np.testing.assert_array_equal(weak["label"], strong["label"])
    assert (np.asarray(weak["image"]) != np.asarray(strong["image"])).any()


def test_mosaic_combines_four_images_at_half_size():
    images, _, boxes = make_scenes()
    batch = {"image": images, "label": LABELS, "boxes": boxes}
    mosaic = make_augment(AugmentConfig(mosaic=1.0), SIDE)["weak"](jax.random.key(0), batch)
    assert mosaic["boxes"].shape == (4, 8, 4)
    for corner, (y, x) in enumerate([(0, 0), (0, 16), (16, 0), (16, 16)]):
        rolled = images[np.roll(np.arange(4), corner)].astype(np.float32)
        half = rolled.reshape(4, 16, 2, 16, 2, 3).mean((2, 4))
        np.testing.assert_allclose(mosaic["image"][:, y : y + 16, x : x + 16], half, atol=0.5)
        expected = np.roll(boxes[:, 0], corner, 0) / 2 + 2 * np.array([y, x, y, x])
        np.testing.assert_allclose(mosaic["boxes"][:, 2 * corner], expected, atol=1e-5)
    assert (np.asarray(mosaic["label"])[:, ::2] == 0).all()
    assert (np.asarray(mosaic["label"])[:, 1::2] == -1).all()


def test_weak_drops_boxes_and_transforms_weights():
    images, masks, boxes = make_scenes()
    weak = make_augment(AugmentConfig(translate=0.9), SIDE)["weak"]
    key = jax.random.key(1)
    with_masks = weak(key, {"image": images, "label": masks, "weight": masks.astype(np.float32) * 3})
    inside = np.asarray(with_masks["label"]) == 1
    assert np.asarray(with_masks["weight"])[inside].min(initial=3) > 1.4
    with_boxes = weak(key, {"image": images, "label": LABELS, "boxes": boxes})
    kept = np.asarray(with_boxes["label"])[:, 0] == 0
    share = inside.sum((1, 2)) / (masks == 1).sum((1, 2))
    assert (kept == (share > 0.2)).all(), (kept, share)


def test_default_config_changes_nothing():
    images, _, boxes = make_scenes()
    batch = {"image": images, "label": LABELS, "boxes": boxes}
    for side in (SIDE, None):
        weak = make_augment(AugmentConfig(), side)["weak"]
        augmented = weak(jax.random.key(0), jax.tree.map(jnp.asarray, batch))
        for name, value in batch.items():
            np.testing.assert_array_equal(augmented[name], value)
