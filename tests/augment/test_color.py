"""Photometric operations against PIL."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from tljax.augment.color import COLOR_OPERATIONS, OPERATIONS, photometric

PIL = {
    "identity": lambda image, _: image,
    "brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "posterize": lambda image, bits: ImageOps.posterize(image, round(bits)),
    "solarize": lambda image, threshold: ImageOps.solarize(image, threshold),
    "color": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
}
APPLY = {name: jax.jit(operation.apply) for name, operation in COLOR_OPERATIONS.items()}


@st.composite
def random_images(draw, channels):
    """Draw an image with any range of values, large enough to be equalized, with an even or skewed histogram."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    low = draw(st.integers(0, 255))
    width = draw(st.integers(0, 255))
    values = low + rng.random((30, 34, channels)) ** draw(st.sampled_from([1, 4])) * min(width, 255 - low)
    return values.astype(np.uint8)


def apply_pil(name, image, magnitude):
    pil_image = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    return np.asarray(PIL[name](pil_image, magnitude)).reshape(image.shape)


@pytest.mark.parametrize("name", COLOR_OPERATIONS)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_operation_matches_pil(name, data):
    image = data.draw(random_images(channels=3 if name == "color" else data.draw(st.sampled_from([1, 3]))))
    low = COLOR_OPERATIONS[name].low
    high = COLOR_OPERATIONS[name].high
    magnitude = float(np.float32(low + (high - low) * data.draw(st.integers(0, 100)) / 100))
    result = np.asarray(APPLY[name](image, magnitude)).astype(int)
    exact = name in ("identity", "posterize", "solarize", "equalize")
    assert abs(result - apply_pil(name, image, magnitude)).max() <= (0 if exact else 1)


@pytest.mark.parametrize("name", COLOR_OPERATIONS)
def test_neutral_magnitude_changes_nothing(name):
    image = np.random.default_rng(0).integers(0, 256, (30, 34, 3), dtype=np.uint8)
    np.testing.assert_array_equal(APPLY[name](image, COLOR_OPERATIONS[name].neutral), image)


@pytest.mark.parametrize(("channels", "table"), [(1, OPERATIONS), (3, COLOR_OPERATIONS)])
def test_photometric_selects_operation_and_magnitude(channels, table):
    image = np.random.default_rng(1).integers(30, 200, (30, 34, channels), dtype=np.uint8)
    apply = jax.jit(photometric)
    for index, (name, operation) in enumerate(table.items()):
        for strength in (1.0, 0.5):
            out = apply(image, np.float32([(index + 0.5) / len(table), 0.25]), strength)
            sampled = 0.75 * operation.low + 0.25 * operation.high
            magnitude = operation.neutral + strength * (sampled - operation.neutral)
            assert abs(np.asarray(out).astype(int) - APPLY[name](image, magnitude)).max() <= 1, name
