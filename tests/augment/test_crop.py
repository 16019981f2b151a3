"""Random resized crops: their distribution, and where they are in the image."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tljax.augment import affine
from tljax.augment.pipeline import make_augment
from tljax.config import AugmentConfig, parse
from tljax.errors import UserError
from tljax.features.cache_plan import has_augmentation
from tljax.weights import Preprocess, make_preprocess
from tljax.weights.preprocess import crop_length


def sample_boxes(count, area, height, width):
    """Return sizes [count, 2] and centers [count, 2] of crops."""
    keys = jax.random.split(jax.random.key(0), count)
    sizes, centers = jax.vmap(lambda key: affine.sample_crop(key, area, height, width))(keys)
    return np.asarray(sizes), np.asarray(centers)


def reference_sizes(count, area, height, width, seed=1):
    """Return sizes of crops by the loop of torchvision's RandomResizedCrop, without rounding to pixels."""
    rng = np.random.default_rng(seed)
    sizes = []
    for _ in range(count):
        for _ in range(10):
            target = height * width * rng.uniform(*area)
            ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            size = math.sqrt(target / ratio), math.sqrt(target * ratio)
            if size[0] <= height and size[1] <= width:
                break
        else:
            ratio = min(max(width / height, 3 / 4), 4 / 3)
            size = (height, height * ratio) if ratio <= width / height else (width / ratio, width)
        sizes.append(size)
    return np.array(sizes)


@pytest.mark.parametrize(("area", "size"), [((0.08, 1.0), (48, 64)), ((0.5, 1.0), (64, 64)), ((0.3, 1.0), (30, 90))])
def test_sample_crop_has_the_distribution_of_torchvision(area, size):
    sizes, centers = sample_boxes(4000, area, *size)
    expected = reference_sizes(4000, area, *size)
    quantiles = np.linspace(0.02, 0.98, 25)
    for statistic in (lambda s: s[:, 0] * s[:, 1] / math.prod(size), lambda s: np.log(s[:, 1] / s[:, 0])):
        actual, wanted = (np.quantile(statistic(s), quantiles) for s in (sizes, expected))
        np.testing.assert_allclose(actual, wanted, atol=0.03)
    assert (np.abs(centers) + sizes / 2 <= np.array(size) / 2 + 1e-3).all()
    room = np.array(size) - sizes
    free = (room > 1) & (centers != 0).any(1)[:, None]  # not the crop in the center
    offsets = (centers / np.maximum(room, 1e-6))[free]
    assert offsets.min() < -0.45
    assert offsets.max() > 0.45
    assert abs(offsets.mean()) < 0.02


def test_sample_crop_that_never_fits_is_the_center():
    sizes, centers = sample_boxes(20, (1.0, 1.0), 10, 30)
    np.testing.assert_allclose(sizes, [[10, 40 / 3]] * 20, rtol=1e-6)
    assert (centers == 0).all()


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_crop_fills_what_the_network_sees(share):
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    image = np.asarray(small.resize((64, 64), Image.Resampling.BICUBIC))
    ranges = affine.AffineRanges(crop=(0.2, 0.3), crop_share=share)
    key = jax.random.key(3)
    warped = affine.warp_image(jnp.asarray(image), affine.sample_affine(key, ranges, 64, 64))
    spec = Preprocess("p", 1.0, (0.0, 0.0, 0.0), crop=share, center_crop=True)
    seen = make_preprocess(spec, 32)(np.asarray(warped)[None])[0]
    size, center = (np.asarray(x) for x in affine.sample_crop(jax.random.fold_in(key, 1), (0.2, 0.3), 64, 64))
    top, left = 32 + center - size / 2
    box = (left, top, left + size[1], top + size[0])
    expected = np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR, box), float)
    assert np.abs(np.asarray(seen) - expected).mean() < 2.5
    assert np.abs(np.asarray(seen) - image[16:48, 16:48]).mean() > 10


def test_make_augment_crops_with_other_transforms():
    images = np.random.default_rng(0).integers(0, 256, (8, 24, 24, 3), dtype=np.uint8)
    augment = make_augment(AugmentConfig(crop_scale=(0.2, 0.5), flip=True, rotate=10.0), None, 0.875)
    for view in ("weak", "strong"):
        out = augment[view](jax.random.key(0), {"image": images})["image"]
        assert out.shape == images.shape
        assert out.dtype == jnp.uint8
        assert len({np.asarray(image).tobytes() for image in out}) == 8


def test_crop_scale_moves_masks_and_boxes():
    images = np.full((4, 32, 32, 1), 20, np.uint8)
    images[:, 8:20, 12:24] = 220
    masks = (images[..., 0] > 100).astype(np.uint8)
    batch = {"image": images, "label": masks}
    out = make_augment(AugmentConfig(crop_scale=(0.4, 0.8)), 32)["weak"](jax.random.key(1), batch)
    bright, mask = np.asarray(out["image"])[..., 0] > 120, np.asarray(out["label"]) == 1
    assert (bright == mask).mean() > 0.97
    assert not (mask == masks).all()


def test_crop_scale_of_one_is_off():
    assert not has_augmentation(AugmentConfig(crop_scale=(1.0, 1.0)))
    assert has_augmentation(AugmentConfig(crop_scale=(0.5, 1.0)))
    assert affine.AffineRanges.from_config(AugmentConfig()).is_identity
    for wrong in ([0.0, 1.0], [0.5, 1.5], [0.9, 0.1]):
        with pytest.raises(UserError, match=r"augment\.crop_scale must be two shares of the area"):
            parse({"augment": {"crop_scale": wrong}, "strategy": {"name": "scratch"}})


@pytest.mark.parametrize("share", [0.875, 0.9, 0.95, 224 / 232, 1.0])
def test_crop_length_inverts_rounding_up(share):
    for size in range(1, 600):
        assert crop_length(math.ceil(size / share - 1e-6), share) == size


def test_center_crop_takes_the_middle_of_the_image():
    image = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1)
    spec = Preprocess("p", 1.0, (0.0, 0.0, 0.0), crop=0.5, center_crop=True)
    assert make_preprocess(spec, 2)(image)[0, ..., 0].tolist() == [[5, 6], [9, 10]]
    whole = Preprocess("p", 1.0, (0.0, 0.0, 0.0), crop=0.5)
    assert make_preprocess(whole, 4)(image)[0, ..., 0].tolist() == image[0, ..., 0].tolist()
