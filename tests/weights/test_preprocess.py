"""Preprocessing equals Keras', and resizing equals torch's (tests/golden)."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from tljax.weights import PRESETS, Preprocess, make_preprocess

GOLDEN = Path(__file__).parent.parent / "golden"
KERAS = json.loads((GOLDEN / "keras.json").read_text())["preprocess"]
RESIZED = np.load(GOLDEN / "resize.npz")


@pytest.mark.parametrize(("preset", "keras_mode"), [("caffe", "caffe"), ("torch", "torch"), ("symmetric", "tf")])
def test_presets_equal_keras(preset, keras_mode):
    images = np.array(KERAS["input"], np.uint8)
    out = make_preprocess(PRESETS[preset], None)(images)
    np.testing.assert_allclose(out, np.array(KERAS[keras_mode]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(16, 16), (4, 5)])
def test_resizing_equals_torch_with_antialiasing(method, size):
    image = RESIZED["input"]
    expected = np.clip(RESIZED[f"{method}_{size[0]}x{size[1]}"], 0, 255)
    jax_method = {"bilinear": "linear", "bicubic": "cubic"}[method]

    @functools.partial(jax.jit, static_argnums=1)
    def resize(image, size):
        return jax.image.resize(image, (*size, 1), jax_method, antialias=True)

    actual = np.clip(resize(image, size), 0, 255)
    np.testing.assert_allclose(actual, expected, atol=1e-3)
    if size == (16, 16):
        spec = Preprocess("p", 1.0, (0.0, 0.0, 0.0), interpolation=method)
        out = make_preprocess(spec, 16)(image[None].astype(np.uint8))
        np.testing.assert_allclose(out[0], np.repeat(expected, 3, -1), atol=1e-3)
        smaller = np.clip(resize(image, (5, 5)), 0, 255)
        out = make_preprocess(spec, 5)(image[None].astype(np.uint8))
        np.testing.assert_allclose(out[0], np.repeat(smaller, 3, -1), atol=1e-3)


def test_preprocess_broadcasts_gray_before_normalization():
    spec = Preprocess("p", 1.0, (1.0, 2.0, 3.0), order="bgr")
    out = make_preprocess(spec, None)(np.full((1, 2, 2, 1), 10, np.uint8))
    np.testing.assert_array_equal(out[0, 0, 0], [9, 8, 7])
    color_image = np.array([[[[1, 2, 3]]]], np.uint8)
    np.testing.assert_array_equal(make_preprocess(spec, None)(color_image)[0, 0, 0], [2, 0, -2])
