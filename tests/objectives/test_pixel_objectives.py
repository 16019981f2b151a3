"""Objectives of masks beside brute force and the losses that they call."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.special import log_softmax

from tljax.losses import pixelwise
from tljax.losses import segmentation as objectives
from tljax.losses.pixelwise import IGNORED
from tljax.losses.weight_maps import boundary_weights


def regions(mask):
    """The 4-connected regions of pixels of one class, as lists of places, by flooding."""
    left = {place for place, kind in np.ndenumerate(mask) if kind not in (0, IGNORED)}
    while left:
        start = left.pop()
        region, edge = [start], [start]
        while edge:
            y, x = edge.pop()
            for place in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if place in left and mask[place] == mask[start]:
                    left.remove(place)
                    region.append(place)
                    edge.append(place)
        yield region


def weights_by_hand(mask, w0, sigma):
    """From the distance of every pixel to every pixel of every border."""
    places = np.array(list(np.ndindex(mask.shape)))
    distances = []
    for region in regions(mask):
        outside = set(map(tuple, places)) - set(region)
        border = [(y, x) for y, x in region if outside & {(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)}]
        if border:
            distances.append(cdist(places, border).min(1))
    if len(distances) < 2:
        return np.zeros(mask.shape)
    d1, d2 = np.sort(distances, axis=0)[:2]
    return (w0 * np.exp(-((d1 + d2) ** 2) / (2 * sigma**2))).reshape(mask.shape)


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 999),
    sides=st.sampled_from([(1, 1), (3, 30), (16, 11)]),
    kinds=st.integers(1, 3),
    density=st.sampled_from([0.05, 0.3, 1.0]),
    sigma=st.sampled_from([0.4, 5.0]),
)
def test_boundary_weights_are_those_of_brute_force(seed, sides, kinds, density, sigma):
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random((2, *sides)) < density, rng.integers(1, kinds + 1, (2, *sides)), 0).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.1] = IGNORED
    found = boundary_weights(labels, w0=7.0, sigma=sigma)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [weights_by_hand(mask, 7.0, sigma) for mask in labels], rtol=1e-6, atol=1e-7)


def test_a_narrow_gap_between_two_cells_weighs_most_and_one_cell_weighs_nothing():
    labels = np.zeros((2, 20, 60), np.uint8)
    labels[0, 5:15, 5:15] = labels[0, 5:15, 18:28] = labels[1, 5:15, 5:15] = 1
    weights = boundary_weights(labels)
    # Three pixels wide: in its middle both cells are 2 away, at its edges 1 and 3.
    assert weights[0, 10, 15:18] == pytest.approx(10 * np.exp(-16 / 50))
    assert weights[0, :, 59].max() < 1e-6
    assert not weights[1].any()


LABELS = np.random.default_rng(0).integers(0, 3, (2, 6, 4)).astype(np.uint8)
LABELS[0, :2] = IGNORED


@pytest.mark.parametrize("name", ["dice", "focal", "lovasz"])
def test_logits_are_brought_to_the_grid_of_the_labels(name):
    coarse = np.random.default_rng(1).normal(size=(2, 3, 2, 3))
    # One axis after the other, each by its own interpolation.
    rows, columns = (np.arange(n) / 2 - 0.25 for n in (6, 4))
    tall = np.apply_along_axis(lambda x: np.interp(rows, np.arange(3), x), 1, coarse)
    fine = np.apply_along_axis(lambda x: np.interp(columns, np.arange(2), x), 2, tall)
    np.testing.assert_allclose(pixelwise.resize_logits(jnp.asarray(coarse), (6, 4)), fine, atol=1e-6)

    @jax.jit
    def losses(coarse, fine, labels):
        found = getattr(objectives, name)({"logits": coarse}, {"label": labels}, {}, {})
        return found, getattr(pixelwise, name)(fine, labels)

    np.testing.assert_allclose(*losses(coarse, fine, LABELS), rtol=1e-5)


def test_half_precision_is_widened_before_it_is_resized():
    logits = jnp.asarray([[[[0.0], [1.0]]]], jnp.bfloat16)
    found = pixelwise.resize_logits(logits, (1, 200))
    assert found.dtype == jnp.float32
    assert len(np.unique(found)) > 100


def test_a_coarser_grid_has_the_mean_of_what_it_covers():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, 40, 40, 2)))
    found = pixelwise.resize_logits(logits, (2, 2))
    # The triangle twice as wide as the cell, cut at the edge.
    weights = np.interp(np.abs((np.arange(40) + 0.5) / 20 - np.array([[0.5], [1.5]])), [0, 1], [1, 0])
    weights /= weights.sum(1, keepdims=True)
    np.testing.assert_allclose(found[0], np.einsum("ih,jw,hwc->ijc", weights, weights, logits[0]), atol=1e-5)


@pytest.mark.parametrize("of_class", [None, np.array([0.5, 1.0, 3.0], np.float32)])
def test_boundary_cross_entropy_is_the_papers_over_the_pixels_that_count(of_class):
    rng = np.random.default_rng(2)
    logits, weight = rng.normal(size=(2, 6, 4, 3)), rng.random((2, 6, 4)).astype(np.float32)
    expected, count = 0.0, 0
    for place, label in np.ndenumerate(LABELS):
        if label != IGNORED:
            w = (1.0 if of_class is None else of_class[label]) + weight[place]
            expected, count = expected - w * log_softmax(logits[place])[label], count + 1
    batch = {"label": jnp.asarray(LABELS), "weight": jnp.asarray(weight)}
    hyper = {} if of_class is None else {"class_weights": jnp.asarray(of_class)}

    def loss(x):
        return objectives.boundary_cross_entropy({"logits": x}, batch, {}, hyper)

    value, gradient = jax.device_get(jax.jit(jax.value_and_grad(loss))(logits))
    assert value == pytest.approx(expected / count, rel=1e-5)
    assert not gradient[0, :2].any()
    assert np.isfinite(gradient).all()
    assert objectives.boundary_cross_entropy.requires == {"boundary_weights", "masks"}
