"""Weak and strong augmentation of images: against PIL, and reproducibility by key."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tljax.augment.randaugment import GREY, make_strong, make_weak, random_cutout, random_warp, strong_view
from tljax.config import AugmentConfig

IMAGES = np.random.default_rng(0).integers(1, 256, (64, 6, 6, 1), dtype=np.uint8)


def augment_weakly(seed=0, **options):
    return np.asarray(make_weak(AugmentConfig(**options))(jax.random.key(seed), IMAGES))


def test_default_config_changes_nothing():
    np.testing.assert_array_equal(augment_weakly(), IMAGES)


def test_flip_mirrors_about_half_of_the_images():
    out = augment_weakly(flip=True)
    same = (out == IMAGES).all((1, 2, 3))
    mirrored = (out == IMAGES[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
    assert 16 < mirrored.sum() < 48


def test_crop_uses_every_offset_of_padded_image():
    out = augment_weakly(crop_padding=1)
    padded = np.pad(IMAGES, [(0, 0), (1, 1), (1, 1), (0, 0)])
    offsets = [
        [(y, x) for y in range(3) for x in range(3) if (padded[i, y : y + 6, x : x + 6] == out[i]).all()]
        for i in range(64)
    ]
    assert all(len(matching) == 1 for matching in offsets)
    assert {matching[0] for matching in offsets} == {(y, x) for y in range(3) for x in range(3)}


@pytest.mark.parametrize("options", [{"flip": True}, {"crop_padding": 2}])
def test_weak_depends_on_key(options):
    np.testing.assert_array_equal(augment_weakly(1, **options), augment_weakly(1, **options))
    assert (augment_weakly(1, **options) != augment_weakly(2, **options)).any()


def smooth_image(shape=(20, 24, 3)):
    """Return an image without edges, for which two implementations of interpolation agree."""
    y, x, c = np.meshgrid(*map(np.arange, shape), indexing="ij")
    return np.round(127 + 60 * np.sin(y / 4 + c) + 60 * np.cos(x / 5)).astype(np.uint8)


RANDOM_WARP, CUTOUT = map(jax.jit, (random_warp, random_cutout))
STRONG = jax.jit(make_strong(AugmentConfig()))
VIEWS = jax.jit(jax.vmap(strong_view, (0, 0, None)))
SMOOTH_IMAGES = np.stack([np.roll(smooth_image((16, 16, 3)), i, 0) for i in range(16)])


@pytest.mark.parametrize(("uniform", "angle"), [(1.0, -30), (0.0, 30), (0.75, -15)])
def test_random_warp_rotates_like_pil(uniform, angle):
    image = smooth_image()
    rotated = np.asarray(RANDOM_WARP(image, np.float32([uniform, 0.5, 0.5, 0.5, 0.5]), 1.0)).astype(int)
    expected = np.asarray(Image.fromarray(image).rotate(angle, Image.Resampling.BILINEAR)).astype(int)
    # Away from the edges: PIL fills with black.
    assert abs(rotated - expected)[6:-6, 6:-6].max() <= 1


@pytest.mark.parametrize(("uniforms", "matrix"), [((1.0, 0.5), (1, 0.3, 0, 1)), ((0.5, 0.0), (1, 0, -0.3, 1))])
def test_random_warp_shears_like_pil(uniforms, matrix):
    image = smooth_image()
    sheared = np.asarray(RANDOM_WARP(image, np.float32([0.5, *uniforms, 0.5, 0.5]), 1.0)).astype(int)
    # PIL's coordinates are (column, row), relative to the corner of the first pixel.
    yy, yx, xy, xx = matrix
    offset = [24 / 2 * (1 - xx) - 20 / 2 * xy, 20 / 2 * (1 - yy) - 24 / 2 * yx]
    affine = (xx, xy, offset[0], yx, yy, offset[1])
    pil = Image.fromarray(image).transform((24, 20), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
    assert abs(sheared - np.asarray(pil).astype(int))[6:-6, 6:-6].max() <= 1


@pytest.mark.parametrize(("strength", "rows"), [(1.0, 6), (0.5, 3)])
def test_random_warp_translates_by_up_to_three_tenths(strength, rows):
    image = smooth_image()
    translated = np.asarray(RANDOM_WARP(image, np.float32([0.5, 0.5, 0.5, 1.0, 0.5]), strength)).astype(int)
    assert abs(translated[: 20 - rows] - image[rows:]).max() <= 1
    assert abs(translated[20 - rows :] - image[-1:]).max() <= 1


@settings(deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3), st.floats(0, 1))
def test_cutout_is_one_grey_square(uniforms, strength):
    out = np.asarray(CUTOUT(np.zeros((12, 16, 1), np.uint8), np.float32(uniforms), strength))[..., 0]
    assert set(np.unique(out)) <= {0, GREY}
    rows, columns = np.flatnonzero(out.any(1)), np.flatnonzero(out.any(0))
    assert (out[np.ix_(rows, columns)] == GREY).all()
    assert max(len(rows), len(columns)) <= 6 * strength * uniforms[0] + 1


def test_largest_cutout_is_half_the_shorter_side():
    out = np.asarray(CUTOUT(np.zeros((12, 16, 1), np.uint8), np.float32([1.0, 0.5, 0.5]), 1.0))[..., 0]
    assert (out[3:9, 5:11] == GREY).all()
    assert (out == GREY).sum() == 36


def test_strong_with_zero_magnitude_is_weak():
    config = AugmentConfig(strong_magnitude=0.0, flip=True, crop_padding=1)
    views = np.asarray(make_strong(config)(jax.random.key(3), IMAGES))
    np.testing.assert_array_equal(views, augment_weakly(3, flip=True, crop_padding=1))


def test_strong_depends_on_key_and_index_only():
    same = np.broadcast_to(SMOOTH_IMAGES[0], SMOOTH_IMAGES.shape)
    out, repeated = (np.asarray(STRONG(jax.random.key(0), same)) for _ in range(2))
    np.testing.assert_array_equal(out, repeated)
    assert out.dtype == np.uint8
    assert out.shape == same.shape
    assert len({view.tobytes() for view in [*out, *np.asarray(STRONG(jax.random.key(1), same)), same[0]]}) == 33
    modified = same.copy()
    modified[3] = 255 - modified[3]
    np.testing.assert_array_equal(np.delete(STRONG(jax.random.key(0), modified), 3, 0), np.delete(out, 3, 0))


def test_strength_scales_change_of_image():
    uniforms = np.random.default_rng(0).random((16, 12), np.float32)
    views = [np.asarray(VIEWS(SMOOTH_IMAGES, uniforms, s)).astype(int) for s in (0.0, 0.01, 0.3, 1.0)]
    changes = [abs(view - SMOOTH_IMAGES).mean() for view in views]
    assert changes[0] == 0
    assert 0 < changes[1] < 4 < changes[2] < changes[3]


def test_vmap_equals_sequential_map():
    """The accelerator's vmap matches the CPU's sequential map, up to rounding before a threshold."""
    key = jax.random.key(5)
    uniforms = jax.random.uniform(jax.random.split(key)[1], (16, 12))
    batched = np.asarray(VIEWS(SMOOTH_IMAGES, uniforms, 1.0)).astype(int)
    assert (abs(batched - STRONG(key, SMOOTH_IMAGES)) <= 1).mean() > 0.99
