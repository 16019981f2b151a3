"""Affine transforms of images, masks and boxes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import affine_transform

from tljax.augment import affine
from tljax.losses.pixelwise import IGNORED

RANGES = affine.AffineRanges(flip=0.5, scale=(0.5, 2.0), rotate=40.0, translate=0.2)
SIZE = 48, 64
warp_mask = jax.jit(affine.warp_mask)
warp_boxes = jax.jit(lambda boxes, transform: affine.warp_boxes(boxes, transform, *SIZE, 0.25))


def bounding_box(mask):
    rows, columns = np.nonzero(mask)
    return [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**31 - 1), st.tuples(st.integers(0, 40), st.integers(0, 50)), st.tuples(*[st.integers(8, 30)] * 2)
)
def test_warped_box_bounds_warped_mask(seed, corner, size):
    y, x = corner
    height, width = size
    box = np.array([y, x, min(y + height, SIZE[0]), min(x + width, SIZE[1])])
    mask = np.zeros(SIZE, np.uint8)
    mask[box[0] : box[2], box[1] : box[3]] = 1
    transform = affine.sample_affine(jax.random.key(seed), RANGES, *SIZE)
    visible = np.asarray(warp_mask(jnp.asarray(mask), transform)) == 1
    (warped,), (valid,) = warp_boxes(jnp.asarray(box[None], jnp.float32), transform)
    if valid and visible.any() and not is_clipped(warped):
        np.testing.assert_allclose(warped, bounding_box(visible), atol=1.0)
    if not visible.any():
        assert not valid or min(warped[2] - warped[0], warped[3] - warped[1]) <= 1.5


def is_clipped(box):
    """Return whether the edge of the image clips the box: then the box of its corners can exceed its visible part."""
    return min(box[0], box[1]) <= 0 or box[2] >= SIZE[0] or box[3] >= SIZE[1]


def test_default_ranges_give_identity():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*SIZE, 3), np.uint8)
    mask = rng.integers(0, 5, SIZE, np.uint8)
    transform = affine.sample_affine(jax.random.key(3), affine.AffineRanges(), *SIZE)
    np.testing.assert_array_equal(affine.warp_image(jnp.asarray(image), transform), image)
    np.testing.assert_array_equal(affine.warp_mask(jnp.asarray(mask), transform), mask)
    boxes, valid = affine.warp_boxes(jnp.array([[1.0, 2.0, 30.0, 40.0]]), transform, *SIZE, 0.25)
    np.testing.assert_allclose(boxes, [[1, 2, 30, 40]], atol=1e-5)
    assert valid.all()


def test_flip_mirrors_image_and_boxes():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*SIZE, 3), np.uint8)
    transform = affine.sample_affine(jax.random.key(3), affine.AffineRanges(flip=1.0), *SIZE)
    np.testing.assert_array_equal(affine.warp_image(jnp.asarray(image), transform), image[:, ::-1])
    boxes, _ = affine.warp_boxes(jnp.array([[1.0, 2.0, 30.0, 40.0]]), transform, *SIZE, 0.25)
    np.testing.assert_allclose(boxes, [[1, SIZE[1] - 40, 30, SIZE[1] - 2]], atol=1e-5)


def smooth_image():
    y, x, c = np.meshgrid(*map(np.arange, (20, 24, 3)), indexing="ij")
    return np.round(127 + 60 * np.sin(y / 4 + c) + 60 * np.cos(x / 5)).astype(np.uint8)


@pytest.mark.parametrize("fill", [None, affine.GREY])
@pytest.mark.parametrize(
    ("matrix", "shift"),
    [
        ([[1.0, 0.0], [0.0, 1.0]], [3.0, -2.0]),
        ([[0.8, 0.5], [-0.6, 0.9]], [0.0, 0.0]),
        ([[1.0, -0.3], [0.2, 0.94]], [-4.3, 5.6]),
    ],
)
def test_warp_image_matches_scipy(matrix, shift, fill):
    image = smooth_image()
    matrix = np.float32(matrix)
    shift = np.float32(shift)
    center = (np.array(image.shape[:2]) - 1) / 2
    # SciPy's "grid-constant" interpolates between edge pixels and the fill value.
    mode = {"mode": "nearest"} if fill is None else {"mode": "grid-constant", "cval": fill}
    expected = [
        affine_transform(image[..., c].astype(float), matrix, center - matrix @ center + shift, order=1, **mode)
        for c in range(3)
    ]
    warped = affine.warp_image(jnp.asarray(image), affine.Affine(matrix, shift), fill)
    assert abs(np.asarray(warped) - np.stack(expected, -1)).max() < 0.51


def test_warp_beyond_the_edge_fills_and_drops_boxes():
    transform = affine.Affine(jnp.eye(2), jnp.array([0.0, 40.0]))  # moves everything 40 columns to the left
    image = jnp.zeros((*SIZE, 3), jnp.uint8)
    mask = jnp.ones(SIZE, jnp.uint8)
    assert (affine.warp_image(image, transform)[:, 25:] == 128).all()
    assert (affine.warp_mask(mask, transform)[:, 24:] == IGNORED).all()
    boxes = jnp.array([[0.0, 0, 20, 20], [0.0, 30, 20, 60], [0.0, 38, 20, 41], [5.0, 5, 5, 5]])
    warped, valid = affine.warp_boxes(boxes, transform, *SIZE, 0.5)
    assert valid.tolist() == [False, True, False, False]
    np.testing.assert_allclose(warped[1], [0, 0, 20, 20])


@pytest.mark.parametrize("ranges", [RANGES, affine.AffineRanges()])
def test_vmapped_warp_equals_single_warp(ranges):
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, *SIZE, 3), np.uint8))
    keys = jax.random.split(jax.random.key(0), 3)
    batched = jax.vmap(lambda k, x: affine.warp_image(x, affine.sample_affine(k, ranges, *SIZE)))(keys, images)
    single = affine.warp_image(images[1], affine.sample_affine(keys[1], ranges, *SIZE))
    assert np.abs(np.asarray(batched[1], int) - np.asarray(single, int)).max() <= 1
