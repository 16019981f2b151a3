"""Views of pictures with masks and boxes: everything moves together, and the same key gives the same places."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tljax.augment.pipeline import make_augment
from tljax.config import AugmentConfig
from tljax.losses.pixelwise import IGNORED

SIDE = 64  # of the input; pictures have half of it


def scene(count=4, side=32):
    """Grey pictures with one bright rectangle each: pictures, masks, and boxes in pixels of the input."""
    rng = np.random.default_rng(0)
    images, masks = np.full((count, side, side, 3), 40, np.uint8), np.zeros((count, side, side), np.uint8)
    boxes = np.zeros((count, 2, 4), np.float32)
    for i in range(count):
        y0, x0 = rng.integers(6, 12, 2)
        y1, x1 = rng.integers(18, 26, 2)
        images[i, y0:y1, x0:x1], masks[i, y0:y1, x0:x1] = 220, 1
        boxes[i, 0] = np.array([y0, x0, y1, x1]) * SIDE / side
    return images, masks, boxes


def around(mask):
    """The box of a mask's pixels."""
    rows, columns = np.nonzero(mask)
    return np.array([rows.min(), columns.min(), rows.max() + 1, columns.max() + 1], np.float32)


OPTIONS = (
    {"flip": True, "crop_padding": 3},
    {"flip": True, "scale": (0.7, 1.3), "translate": 0.15},
    {"scale": (0.8, 1.2), "mosaic": 0.5},
)
VIEWS = [jax.jit(make_augment(AugmentConfig(**options), SIDE)["weak"]) for options in OPTIONS]


@settings(deadline=None, max_examples=15)
@given(st.integers(0, len(OPTIONS) - 1), st.integers(0, 99))
def test_picture_mask_and_boxes_move_together(which, seed):
    images, masks, boxes = scene()
    view, key = VIEWS[which], jax.random.key(seed)
    masked = view(key, {"image": images, "label": masks})
    boxed = view(key, {"image": images, "label": np.array([[0, -1]] * 4, np.int32), "boxes": boxes})
    np.testing.assert_array_equal(masked["image"], boxed["image"])
    columns = (masked["image"], masked["label"], boxed["label"], boxed["boxes"])
    for image, mask, label, box in zip(*map(np.asarray, columns), strict=True):
        bright = image[..., 0] > 130  # a pixel of the edge, half covered, may go either way
        assert (bright == (mask == 1))[mask != IGNORED].mean() > 0.93
        left = box[label >= 0] / 2
        if "mosaic" not in OPTIONS[which]:
            assert len(left) == 1
            np.testing.assert_allclose(left[0], around(mask == 1), atol=1.01)


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_strong_views_show_everything_where_weak_ones_do(mosaic):
    images, masks, _ = scene()
    config = AugmentConfig(flip=True, rotate=30.0, translate=0.1, mosaic=mosaic, strong_magnitude=1.0)
    views, key = make_augment(config, SIDE), jax.random.key(3)
    weak, strong = (views[name](key, {"image": images, "label": masks}) for name in ("weak", "strong"))
    np.testing.assert_array_equal(weak["label"], strong["label"])
    assert (np.asarray(weak["image"]) != np.asarray(strong["image"])).any()


def test_a_mosaic_is_four_pictures_at_half_their_sides():
    images, _, boxes = scene()
    batch = {"image": images, "label": np.array([[0, -1]] * 4, np.int32), "boxes": boxes}
    made = make_augment(AugmentConfig(mosaic=1.0), SIDE)["weak"](jax.random.key(0), batch)
    assert made["boxes"].shape == (4, 8, 4)
    for corner, (y, x) in enumerate([(0, 0), (0, 16), (16, 0), (16, 16)]):
        whole = images[np.roll(np.arange(4), corner)].astype(np.float32)
        halves = whole.reshape(4, 16, 2, 16, 2, 3).mean((2, 4))
        np.testing.assert_allclose(made["image"][:, y : y + 16, x : x + 16], halves, atol=0.5)
        shift = 2 * np.array([y, x, y, x])
        np.testing.assert_allclose(made["boxes"][:, 2 * corner], np.roll(boxes[:, 0], corner, 0) / 2 + shift, atol=1e-5)
    assert (np.asarray(made["label"])[:, ::2] == 0).all()
    assert (np.asarray(made["label"])[:, 1::2] == -1).all()


def test_boxes_that_leave_the_picture_are_dropped_and_weights_follow_their_pixels():
    images, masks, boxes = scene()
    config = AugmentConfig(translate=0.9)
    weight = masks.astype(np.float32) * 3
    batch = {"image": images, "label": masks, "weight": weight}
    moved = make_augment(config, SIDE)["weak"](jax.random.key(1), batch)
    inside = np.asarray(moved["label"]) == 1
    assert np.asarray(moved["weight"])[inside].min(initial=3) > 1.4
    boxed = {"image": images, "label": np.array([[0, -1]] * 4, np.int32), "boxes": boxes}
    kept = np.asarray(make_augment(config, SIDE)["weak"](jax.random.key(1), boxed)["label"])[:, 0] == 0
    areas = np.array([(mask == 1).sum() for mask in np.asarray(moved["label"])])
    share = areas / (masks == 1).sum((1, 2))
    assert (kept == (share > 0.2)).all(), (kept, share)


def test_nothing_asked_for_is_nothing_changed():
    images, _, boxes = scene()
    batch = {"image": images, "label": np.array([[0, -1]] * 4, np.int32), "boxes": boxes}
    for side in (SIDE, None):
        made = make_augment(AugmentConfig(), side)["weak"](jax.random.key(0), jax.tree.map(jnp.asarray, batch))
        for name, value in batch.items():
            np.testing.assert_array_equal(made[name], value)
