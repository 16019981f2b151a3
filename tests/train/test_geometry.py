import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import affine_transform

from tljax.augment import affine
from tljax.losses.pixelwise import IGNORED

ALL = affine.AffineRanges(flip=0.5, scale=(0.5, 2.0), rotate=40.0, translate=0.2)
SIDES = 48, 64
warped = jax.jit(lambda mask, warp: affine.warp_mask(mask, warp))
moved = jax.jit(lambda boxes, warp: affine.warp_boxes(boxes, warp, *SIDES, 0.25))


def around(mask):
    rows, columns = np.nonzero(mask)
    return [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**31 - 1), st.tuples(st.integers(0, 40), st.integers(0, 50)), st.tuples(*[st.integers(8, 30)] * 2)
)
def test_a_box_and_the_box_of_its_warped_mask_agree_within_a_pixel(seed, corner, sides):
    (y, x), (height, width) = corner, sides
    box = np.array([y, x, min(y + height, SIDES[0]), min(x + width, SIDES[1])])
    mask = np.zeros(SIDES, np.uint8)
    mask[box[0] : box[2], box[1] : box[3]] = 1
    warp = affine.sample_affine(jax.random.key(seed), ALL, *SIDES)
    seen = np.asarray(warped(jnp.asarray(mask), warp)) == 1
    (found,), (valid,) = moved(jnp.asarray(box[None], jnp.float32), warp)
    if valid and seen.any() and not _cut(found):
        np.testing.assert_allclose(found, around(seen), atol=1.0)
    if not seen.any():
        assert not valid or min(found[2] - found[0], found[3] - found[1]) <= 1.5


def _cut(box):
    """Whether the edge of the picture cuts the box: then its corners say more than what is left of it."""
    return min(box[0], box[1]) <= 0 or box[2] >= SIDES[0] or box[3] >= SIDES[1]


def test_nothing_drawn_is_nothing_changed():
    rng = np.random.default_rng(0)
    image, mask = rng.integers(0, 256, (*SIDES, 3), np.uint8), rng.integers(0, 5, SIDES, np.uint8)
    warp = affine.sample_affine(jax.random.key(3), affine.AffineRanges(), *SIDES)
    np.testing.assert_array_equal(affine.warp_image(jnp.asarray(image), warp), image)
    np.testing.assert_array_equal(affine.warp_mask(jnp.asarray(mask), warp), mask)
    boxes, valid = affine.warp_boxes(jnp.array([[1.0, 2.0, 30.0, 40.0]]), warp, *SIDES, 0.25)
    np.testing.assert_allclose(boxes, [[1, 2, 30, 40]], atol=1e-5)
    assert valid.all()


def test_a_mirrored_picture_is_the_mirrored_picture():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*SIDES, 3), np.uint8)
    warp = affine.sample_affine(jax.random.key(3), affine.AffineRanges(flip=1.0), *SIDES)
    np.testing.assert_array_equal(affine.warp_image(jnp.asarray(image), warp), image[:, ::-1])
    boxes, _ = affine.warp_boxes(jnp.array([[1.0, 2.0, 30.0, 40.0]]), warp, *SIDES, 0.25)
    np.testing.assert_allclose(boxes, [[1, SIDES[1] - 40, 30, SIDES[1] - 2]], atol=1e-5)


def smooth():
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
def test_the_warp_is_that_of_scipy(matrix, shift, fill):
    image, matrix, shift = smooth(), np.float32(matrix), np.float32(shift)
    centre = (np.array(image.shape[:2]) - 1) / 2
    # SciPy's "grid-constant" mixes with what is beyond the edge.
    mode = {"mode": "nearest"} if fill is None else {"mode": "grid-constant", "cval": fill}
    expected = [
        affine_transform(image[..., c].astype(float), matrix, centre - matrix @ centre + shift, order=1, **mode)
        for c in range(3)
    ]
    ours = affine.warp_image(jnp.asarray(image), affine.Affine(matrix, shift), fill)
    assert abs(np.asarray(ours) - np.stack(expected, -1)).max() < 0.51


def test_what_is_beyond_the_edge_is_grey_and_ignored_and_boxes_there_are_dropped():
    warp = affine.Affine(jnp.eye(2), jnp.array([0.0, 40.0]))  # everything moves 40 columns to the left
    image, mask = jnp.zeros((*SIDES, 3), jnp.uint8), jnp.ones(SIDES, jnp.uint8)
    assert (affine.warp_image(image, warp)[:, 25:] == 128).all()
    assert (affine.warp_mask(mask, warp)[:, 24:] == IGNORED).all()
    boxes, valid = affine.warp_boxes(
        jnp.array([[0.0, 0, 20, 20], [0.0, 30, 20, 60], [0.0, 38, 20, 41], [5.0, 5, 5, 5]]), warp, *SIDES, 0.5
    )
    assert valid.tolist() == [False, True, False, False]
    np.testing.assert_allclose(boxes[1], [0, 0, 20, 20])


@pytest.mark.parametrize("ranges", [ALL, affine.AffineRanges()])
def test_a_batch_is_warped_picture_by_picture(ranges):
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, *SIDES, 3), np.uint8))
    keys = jax.random.split(jax.random.key(0), 3)
    every = jax.vmap(lambda k, x: affine.warp_image(x, affine.sample_affine(k, ranges, *SIDES)))(keys, images)
    one = affine.warp_image(images[1], affine.sample_affine(keys[1], ranges, *SIDES))
    assert np.abs(np.asarray(every[1], int) - np.asarray(one, int)).max() <= 1
