"""Augmentation: what comes out is a picture that could have been, and the key decides which."""

import jax
import numpy as np
import pytest

from tljax.config import AugmentConfig
from tljax.train.augment import make_augment

IMAGES = np.random.default_rng(0).integers(1, 256, (64, 6, 6, 1), dtype=np.uint8)


def draw(seed=0, **options):
    return np.asarray(make_augment(AugmentConfig(**options))(jax.random.key(seed), IMAGES))


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
