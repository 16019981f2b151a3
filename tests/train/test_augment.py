"""Augmentation: what comes out is a picture that could have been, and the key decides which."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tljax.augment.randaugment import GREY, make_strong, make_weak, random_cutout, random_warp, strong_view
from tljax.config import AugmentConfig

IMAGES = np.random.default_rng(0).integers(1, 256, (64, 6, 6, 1), dtype=np.uint8)


def draw(seed=0, **options):
    return np.asarray(make_weak(AugmentConfig(**options))(jax.random.key(seed), IMAGES))


def test_nothing_asked_nothing_changed():
    np.testing.assert_array_equal(draw(), IMAGES)


def test_flips_mirror_about_half_of_the_pictures():
    out = draw(flip=True)
    same = (out == IMAGES).all((1, 2, 3))
    mirrored = (out == IMAGES[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
    assert 16 < mirrored.sum() < 48


def test_crops_are_windows_of_the_padded_picture_at_every_place():
    out, padded = draw(crop_padding=1), np.pad(IMAGES, [(0, 0), (1, 1), (1, 1), (0, 0)])
    places = [
        [(y, x) for y in range(3) for x in range(3) if (padded[i, y : y + 6, x : x + 6] == out[i]).all()]
        for i in range(64)
    ]
    assert all(len(found) == 1 for found in places)
    assert {found[0] for found in places} == {(y, x) for y in range(3) for x in range(3)}


@pytest.mark.parametrize("options", [{"flip": True}, {"crop_padding": 2}])
def test_the_key_decides(options):
    np.testing.assert_array_equal(draw(1, **options), draw(1, **options))
    assert (draw(1, **options) != draw(2, **options)).any()


def smooth(shape=(20, 24, 3)):
    """A picture without edges: what two ways to interpolate agree on."""
    y, x, c = np.meshgrid(*map(np.arange, shape), indexing="ij")
    return np.round(127 + 60 * np.sin(y / 4 + c) + 60 * np.cos(x / 5)).astype(np.uint8)


RANDOM_WARP, CUTOUT = map(jax.jit, (random_warp, random_cutout))
STRONG = jax.jit(make_strong(AugmentConfig()))
VIEWS = jax.jit(jax.vmap(strong_view, (0, 0, None)))
PICTURES = np.stack([np.roll(smooth((16, 16, 3)), i, 0) for i in range(16)])


@pytest.mark.parametrize(("drawn", "angle"), [(1.0, -30), (0.0, 30), (0.75, -15)])
def test_the_warp_turns_as_pil_does(drawn, angle):
    image = smooth()
    turned = np.asarray(RANDOM_WARP(image, np.float32([drawn, 0.5, 0.5, 0.5, 0.5]), 1.0)).astype(int)
    expected = np.asarray(Image.fromarray(image).rotate(angle, Image.Resampling.BILINEAR)).astype(int)
    # Away from the edges, beyond which PIL's is black.
    assert abs(turned - expected)[6:-6, 6:-6].max() <= 1


@pytest.mark.parametrize(("drawn", "axes"), [((1.0, 0.5), (1, 0.3, 0, 1)), ((0.5, 0.0), (1, 0, -0.3, 1))])
def test_the_warp_shears_as_pil_does(drawn, axes):
    image = smooth()
    sheared = np.asarray(RANDOM_WARP(image, np.float32([0.5, *drawn, 0.5, 0.5]), 1.0)).astype(int)
    # PIL has the column first, and places from the corner of the first pixel.
    yy, yx, xy, xx = axes
    about = [24 / 2 * (1 - xx) - 20 / 2 * xy, 20 / 2 * (1 - yy) - 24 / 2 * yx]
    affine = (xx, xy, about[0], yx, yy, about[1])
    pil = Image.fromarray(image).transform((24, 20), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
    assert abs(sheared - np.asarray(pil).astype(int))[6:-6, 6:-6].max() <= 1


@pytest.mark.parametrize(("strength", "rows"), [(1.0, 6), (0.5, 3)])
def test_at_the_end_of_its_range_the_warp_moves_by_three_tenths(strength, rows):
    image = smooth()
    moved = np.asarray(RANDOM_WARP(image, np.float32([0.5, 0.5, 0.5, 1.0, 0.5]), strength)).astype(int)
    assert abs(moved[: 20 - rows] - image[rows:]).max() <= 1
    assert abs(moved[20 - rows :] - image[-1:]).max() <= 1


@settings(deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3), st.floats(0, 1))
def test_cutout_is_one_grey_square_of_at_most_half_the_side(drawn, strength):
    out = np.asarray(CUTOUT(np.zeros((12, 16, 1), np.uint8), np.float32(drawn), strength))[..., 0]
    assert set(np.unique(out)) <= {0, GREY}
    rows, columns = np.flatnonzero(out.any(1)), np.flatnonzero(out.any(0))
    assert (out[np.ix_(rows, columns)] == GREY).all()
    assert max(len(rows), len(columns)) <= 6 * strength * drawn[0] + 1


def test_the_largest_cutout_is_half_the_shorter_side():
    out = np.asarray(CUTOUT(np.zeros((12, 16, 1), np.uint8), np.float32([1.0, 0.5, 0.5]), 1.0))[..., 0]
    assert (out[3:9, 5:11] == GREY).all()
    assert (out == GREY).sum() == 36


def test_without_strength_a_strong_view_is_a_weak_one():
    config = AugmentConfig(strong_magnitude=0.0, flip=True, crop_padding=1)
    views = np.asarray(make_strong(config)(jax.random.key(3), IMAGES))
    np.testing.assert_array_equal(views, draw(3, flip=True, crop_padding=1))


def test_strong_views_differ_by_picture_and_key_but_not_by_neighbours():
    same = np.broadcast_to(PICTURES[0], PICTURES.shape)
    out, again = (np.asarray(STRONG(jax.random.key(0), same)) for _ in range(2))
    np.testing.assert_array_equal(out, again)
    assert out.dtype == np.uint8
    assert out.shape == same.shape
    assert len({view.tobytes() for view in [*out, *np.asarray(STRONG(jax.random.key(1), same)), same[0]]}) == 33
    other = same.copy()
    other[3] = 255 - other[3]
    np.testing.assert_array_equal(np.delete(STRONG(jax.random.key(0), other), 3, 0), np.delete(out, 3, 0))


def test_strength_is_how_far_a_view_is_from_its_picture():
    drawn = np.random.default_rng(0).random((16, 12), np.float32)
    far = [abs(np.asarray(VIEWS(PICTURES, drawn, s)).astype(int) - PICTURES).mean() for s in (0.0, 0.01, 0.3, 1.0)]
    assert far[0] == 0
    assert 0 < far[1] < 4 < far[2] < far[3]


def test_all_at_once_is_picture_after_picture():
    """What an accelerator computes is what a processor does, up to rounding before a threshold."""
    key = jax.random.key(5)
    together = np.asarray(VIEWS(PICTURES, jax.random.uniform(jax.random.split(key)[1], (16, 12)), 1.0)).astype(int)
    assert (abs(together - STRONG(key, PICTURES)) <= 1).mean() > 0.99
