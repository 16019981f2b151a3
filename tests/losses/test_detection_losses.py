"""FCOS losses and the matching of locations to boxes, against torchvision; and the additional rule for small boxes."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tljax.losses.detection import (
    centerness,
    detection,
    detection_centerness,
    detection_focal,
    detection_giou,
    loss_terms,
    match_locations,
)

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "detection.npz")
LOCATIONS = GOLDEN["places"]
BATCH = {"label": GOLDEN["label"], "boxes": GOLDEN["boxes"]}
INPUTS = ("logits", "distances", "centre")
UNUSED = ({}, {})  # references and hparams


def make_outputs(logits, distances, centre, locations=LOCATIONS):
    locations = jnp.broadcast_to(locations, (*centre.shape[:2], 3))
    offsets = distances * locations[..., 2:]
    boxes = jnp.concatenate([locations[..., :2] - offsets[..., :2], locations[..., :2] + offsets[..., 2:]], -1)
    return {"logits": logits, "boxes": boxes, "centre": centre, "places": locations}


def make_locations(*strides, side=32):
    rows = []
    for stride in strides:
        centers = (np.arange(side // stride) + 0.5) * stride
        rows += [(y, x, stride) for y in centers for x in centers]
    return np.array(rows, np.float32)


match_locations = jax.jit(match_locations, static_argnums=3)
centerness = jax.jit(centerness)


def test_match_locations_matches_torchvision():
    matched = [match_locations(LOCATIONS, *row, False) for row in zip(BATCH["label"], BATCH["boxes"], strict=True)]
    np.testing.assert_array_equal(matched, GOLDEN["matched"])
    assert len(np.unique(GOLDEN["matched"])) > 4


def test_detection_losses_match_torchvision():
    def loss(inputs):
        *terms, positives = loss_terms(make_outputs(**inputs), BATCH, nearest=False)
        losses = jnp.stack(terms).sum(1) / positives.sum()
        return losses.sum(), losses

    with jax.enable_x64(True):
        inputs = {name: jnp.asarray(GOLDEN[name]) for name in INPUTS}
        (_, losses), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(inputs)
    np.testing.assert_allclose(losses, GOLDEN["losses"], rtol=1e-7)
    for name in INPUTS:
        # torchvision adds 1e-7 to the denominators of its IoU.
        np.testing.assert_allclose(gradients[name], GOLDEN[f"{name}_gradient"], atol=1e-8)


def test_detection_is_sum_of_terms_under_vmap():
    replicas = {name: jnp.stack([GOLDEN[name]] * 2).astype(jnp.float32) for name in INPUTS}

    @jax.jit
    @jax.vmap
    def run(inputs):
        outputs = make_outputs(**inputs)
        losses = (detection, detection_focal, detection_giou, detection_centerness)
        values = [loss(outputs, BATCH, *UNUSED) for loss in losses]
        gradient = jax.grad(lambda x: detection(make_outputs(**x), BATCH, *UNUSED))(inputs)
        return jnp.stack(values), gradient

    values, gradient = run(replicas)
    np.testing.assert_allclose(values[:, 0], values[:, 1:].sum(1), rtol=1e-6)
    np.testing.assert_array_equal(values[0], values[1])
    assert all(jnp.isfinite(g).all() and g.any() for g in gradient.values())


def test_images_without_boxes_have_focal_loss_only():
    outputs = make_outputs(*(GOLDEN[name][:1].astype(np.float32) for name in INPUTS))
    batch = {"label": np.full((1, 2), -1), "boxes": np.zeros((1, 2, 4), np.float32)}
    terms, loss = jax.jit(lambda *x: (loss_terms(*x), detection(*x, *UNUSED)))(outputs, batch)
    assert (terms.giou, terms.centerness, terms.positives) == (0, 0, 0)
    assert loss == pytest.approx(float(terms.focal[0]), rel=1e-6)


def test_box_between_locations_matches_nearest():
    locations = make_locations(8, side=32)
    label = np.array([1])
    box = np.array([[13.0, 13.0, 15.0, 15.0]], np.float32)
    assert (match_locations(locations, label, box, False) == -1).all()
    matched = match_locations(locations, label, box, True)
    assert locations[matched >= 0].tolist() == [[12, 12, 8]]
    assert centerness(locations[5], box[0]) == 1
    # Of two boxes at one location, the smaller one matches, in either order.
    two = np.array([[13.0, 13.0, 15.0, 15.0], [9.0, 9.0, 11.0, 10.0]], np.float32)
    for order in ([0, 1], [1, 0]):
        matched = match_locations(locations, np.array([0, 0]), two[order], True)
        assert matched[5] == order.index(1)
        assert (matched >= 0).sum() == 1


def test_box_size_selects_level():
    locations = make_locations(8, 16, side=128)

    def matched_strides(side):
        box = np.array([[64 - side / 2] * 2 + [64 + side / 2] * 2])
        matched = match_locations(locations, np.array([0]), box, True)
        return set(locations[matched >= 0, 2])

    assert matched_strides(1) == matched_strides(30) == {8}
    assert matched_strides(120) == {16}


def test_centerness_matches_paper():
    boxes = np.array([0.0, 0.0, 16.0, 8.0])
    value = centerness(np.array([[8.0, 4.0, 8.0], [4.0, 4.0, 8.0], [12.0, 2.0, 8.0]]), boxes)
    np.testing.assert_allclose(value, [1, (4 / 12) ** 0.5, (4 / 12 * 2 / 6) ** 0.5], rtol=1e-6)


coordinates = st.floats(0, 31, width=32)
labeled_boxes = st.tuples(coordinates, coordinates, coordinates, coordinates, st.integers(-1, 2))


@settings(deadline=None, max_examples=20)
@given(st.lists(labeled_boxes, min_size=1, max_size=5))
def test_every_box_matches_unless_smaller_ones_do(sampled):
    rows = np.array(sampled + [(0, 0, 0, 0, -1)] * (5 - len(sampled)), np.float32)
    boxes = np.concatenate([rows[:, :2], np.minimum(rows[:, :2] + rows[:, 2:4], 32)], 1)
    label = rows[:, 4].astype(np.int32)
    locations = make_locations(8, 16)
    matched = np.asarray(match_locations(locations, label, boxes, True))
    area = np.prod(boxes[:, 2:] - boxes[:, :2], 1)
    assert (label[matched[matched >= 0]] >= 0).all()
    for i in np.flatnonzero(label >= 0):
        single = match_locations(locations, np.where(np.arange(5) == i, label, -1), boxes, True)
        candidates = np.asarray(single) == i
        assert candidates.any()
        assert (area[matched[candidates]] <= area[i]).all()


def test_focal_loss_ignores_crowds():
    locations = make_locations(8)
    count = len(locations)
    logits = jnp.zeros((1, count, 3))
    centre = jnp.zeros((1, count))
    crowd = [0, 0, 16, 32]
    box = [2, 2, 14, 14]
    batch = {"label": jnp.array([[1, -2, -1]]), "boxes": jnp.array([[box, crowd, [0] * 4]], jnp.float32)}

    @jax.jit
    @jax.grad
    def gradient(logits):
        outputs = make_outputs(logits, jnp.ones((1, count, 4)), centre, locations)
        return loss_terms(outputs, batch).focal.sum()

    has_gradient = np.abs(gradient(logits)[0]).max(-1) > 0
    has_box = np.array([2 < y < 14 and 2 < x < 14 for y, x, _ in locations])
    np.testing.assert_array_equal(has_gradient, (locations[:, 0] >= 16) | has_box)
