"""Segmentation losses and boundary weights, against brute-force implementations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.special import log_softmax

from tljax.losses import pixelwise, segmentation
from tljax.losses.pixelwise import IGNORED
from tljax.losses.weight_maps import boundary_weights


def regions(mask):
    """Yield the 4-connected regions of each class as lists of pixels, by flood fill."""
    remaining = {pixel for pixel, label in np.ndenumerate(mask) if label not in (0, IGNORED)}
    while remaining:
        start = remaining.pop()
        region = [start]
        stack = [start]
        while stack:
            y, x = stack.pop()
            for pixel in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if pixel in remaining and mask[pixel] == mask[start]:
                    remaining.remove(pixel)
                    region.append(pixel)
                    stack.append(pixel)
        yield region


def boundary_weights_brute_force(mask, w0, sigma):
    """Compute the weights from the distances of every pixel to every border pixel."""
    pixels = np.array(list(np.ndindex(mask.shape)))
    distances = []
    for region in regions(mask):
        outside = set(map(tuple, pixels)) - set(region)
        border = [(y, x) for y, x in region if outside & {(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)}]
        if border:
            distances.append(cdist(pixels, border).min(1))
    if len(distances) < 2:
        return np.zeros(mask.shape)
    d1, d2 = np.sort(distances, axis=0)[:2]
    return (w0 * np.exp(-((d1 + d2) ** 2) / (2 * sigma**2))).reshape(mask.shape)


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 999),
    size=st.sampled_from([(1, 1), (3, 30), (16, 11)]),
    classes=st.integers(1, 3),
    density=st.sampled_from([0.05, 0.3, 1.0]),
    sigma=st.sampled_from([0.4, 5.0]),
)
def test_boundary_weights_match_brute_force(seed, size, classes, density, sigma):
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random((2, *size)) < density, rng.integers(1, classes + 1, (2, *size)), 0).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.1] = IGNORED
    weights = boundary_weights(labels, w0=7.0, sigma=sigma)
    assert weights.dtype == np.float32
    expected = [boundary_weights_brute_force(mask, 7.0, sigma) for mask in labels]
    np.testing.assert_allclose(weights, expected, rtol=1e-6, atol=1e-7)


def test_boundary_weights_need_two_objects():
    labels = np.zeros((2, 20, 60), np.uint8)
    labels[0, 5:15, 5:15] = labels[0, 5:15, 18:28] = labels[1, 5:15, 5:15] = 1
    weights = boundary_weights(labels)
    # The gap is three pixels wide: in its middle both objects are 2 away, at its edges 1 and 3.
    assert weights[0, 10, 15:18] == pytest.approx(10 * np.exp(-16 / 50))
    assert weights[0, :, 59].max() < 1e-6
    assert not weights[1].any()


LABELS = np.random.default_rng(0).integers(0, 3, (2, 6, 4)).astype(np.uint8)
LABELS[0, :2] = IGNORED


@pytest.mark.parametrize("name", ["dice", "focal", "lovasz"])
def test_segmentation_loss_resizes_logits(name):
    coarse = np.random.default_rng(1).normal(size=(2, 3, 2, 3))
    # Bilinear interpolation, one axis after the other.
    rows, columns = (np.arange(n) / 2 - 0.25 for n in (6, 4))
    tall = np.apply_along_axis(lambda x: np.interp(rows, np.arange(3), x), 1, coarse)
    fine = np.apply_along_axis(lambda x: np.interp(columns, np.arange(2), x), 2, tall)
    np.testing.assert_allclose(pixelwise.resize_logits(jnp.asarray(coarse), (6, 4)), fine, atol=1e-6)

    @jax.jit
    def losses(coarse, fine, labels):
        resized = getattr(segmentation, name)({"logits": coarse}, {"label": labels}, {}, {})
        return resized, getattr(pixelwise, name)(fine, labels)

    np.testing.assert_allclose(*losses(coarse, fine, LABELS), rtol=1e-5)


def test_resize_logits_casts_to_float32_first():
    logits = jnp.asarray([[[[0.0], [1.0]]]], jnp.bfloat16)
    resized = pixelwise.resize_logits(logits, (1, 200))
    assert resized.dtype == jnp.float32
    assert len(np.unique(resized)) > 100


def test_resize_logits_antialiases_when_downsampling():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, 40, 40, 2)))
    resized = pixelwise.resize_logits(logits, (2, 2))
    # A triangle filter twice as wide as an output pixel, cut at the edge.
    weights = np.interp(np.abs((np.arange(40) + 0.5) / 20 - np.array([[0.5], [1.5]])), [0, 1], [1, 0])
    weights /= weights.sum(1, keepdims=True)
    np.testing.assert_allclose(resized[0], np.einsum("ih,jw,hwc->ijc", weights, weights, logits[0]), atol=1e-5)


@pytest.mark.parametrize("class_weights", [None, np.array([0.5, 1.0, 3.0], np.float32)])
def test_boundary_cross_entropy_matches_paper(class_weights):
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(2, 6, 4, 3))
    boundary = rng.random((2, 6, 4)).astype(np.float32)
    losses = []
    for pixel, label in np.ndenumerate(LABELS):
        if label != IGNORED:
            weight = (1.0 if class_weights is None else class_weights[label]) + boundary[pixel]
            losses.append(-weight * log_softmax(logits[pixel])[label])
    batch = {"label": jnp.asarray(LABELS), "weight": jnp.asarray(boundary)}
    hparams = {} if class_weights is None else {"class_weights": jnp.asarray(class_weights)}

    def loss(x):
        return segmentation.boundary_cross_entropy({"logits": x}, batch, {}, hparams)

    value, gradient = jax.device_get(jax.jit(jax.value_and_grad(loss))(logits))
    assert value == pytest.approx(np.mean(losses), rel=1e-5)
    assert not gradient[0, :2].any()
    assert np.isfinite(gradient).all()
    assert segmentation.boundary_cross_entropy.requires == {"boundary_weights", "masks"}
