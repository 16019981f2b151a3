"""FCOS' assignment and losses beside torchvision's, and the rule for small boxes that torchvision has not."""

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
PLACES = GOLDEN["places"]
BATCH = {"label": GOLDEN["label"], "boxes": GOLDEN["boxes"]}
PARTS = ("logits", "distances", "centre")
NO_INPUTS = ({}, {})  # neither another network's answers nor numbers


def outputs_of(logits, distances, centre, places=PLACES):
    places = jnp.broadcast_to(places, (*centre.shape[:2], 3))
    reach = distances * places[..., 2:]
    boxes = jnp.concatenate([places[..., :2] - reach[..., :2], places[..., :2] + reach[..., 2:]], -1)
    return {"logits": logits, "boxes": boxes, "centre": centre, "places": places}


def grid(*strides, side=32):
    rows = []
    for stride in strides:
        at = (np.arange(side // stride) + 0.5) * stride
        rows += [(y, x, stride) for y in at for x in at]
    return np.array(rows, np.float32)


match_locations = jax.jit(match_locations, static_argnums=3)
centre_of = jax.jit(centerness)


def test_assignment_equals_torchvisions():
    found = [match_locations(PLACES, *row, False) for row in zip(BATCH["label"], BATCH["boxes"], strict=True)]
    np.testing.assert_array_equal(found, GOLDEN["matched"])
    assert len(np.unique(GOLDEN["matched"])) > 4


def test_losses_and_their_gradients_equal_torchvisions():
    def loss(parts):
        *sums, positives = loss_terms(outputs_of(**parts), BATCH, nearest=False)
        each = jnp.stack(sums).sum(1) / positives.sum()
        return each.sum(), each

    with jax.enable_x64(True):
        parts = {name: jnp.asarray(GOLDEN[name]) for name in PARTS}
        (_, each), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(parts)
    np.testing.assert_allclose(each, GOLDEN["losses"], rtol=1e-7)
    for name in PARTS:
        # torchvision adds 1e-7 to the areas that it divides by.
        np.testing.assert_allclose(gradients[name], GOLDEN[f"{name}_gradient"], atol=1e-8)


def test_the_three_objectives_add_up_to_the_one_and_can_be_mapped_over_runs():
    arrays = {name: jnp.stack([GOLDEN[name]] * 2).astype(jnp.float32) for name in PARTS}

    @jax.jit
    @jax.vmap
    def losses(parts):
        outputs = outputs_of(**parts)
        every = (detection, detection_focal, detection_giou, detection_centerness)
        values = [loss(outputs, BATCH, *NO_INPUTS) for loss in every]
        gradient = jax.grad(lambda p: detection(outputs_of(**p), BATCH, *NO_INPUTS))(parts)
        return jnp.stack(values), gradient

    (values, gradient) = losses(arrays)
    np.testing.assert_allclose(values[:, 0], values[:, 1:].sum(1), rtol=1e-6)
    np.testing.assert_array_equal(values[0], values[1])
    assert all(jnp.isfinite(g).all() and g.any() for g in gradient.values())


def test_pictures_without_boxes_have_a_focal_loss_alone():
    outputs = outputs_of(*(GOLDEN[name][:1].astype(np.float32) for name in PARTS))
    batch = {"label": np.full((1, 2), -1), "boxes": np.zeros((1, 2, 4), np.float32)}
    sums, loss = jax.jit(lambda *x: (loss_terms(*x), detection(*x, *NO_INPUTS)))(outputs, batch)
    assert (sums.giou, sums.centerness, sums.positives) == (0, 0, 0)
    assert loss == pytest.approx(float(sums.focal[0]), rel=1e-6)


def test_a_box_between_the_centres_has_its_nearest_place_and_is_central_there():
    places, label = grid(8, side=32), np.array([1])
    box = np.array([[13.0, 13.0, 15.0, 15.0]], np.float32)
    assert (match_locations(places, label, box, False) == -1).all()
    found = match_locations(places, label, box, True)
    assert places[found >= 0].tolist() == [[12, 12, 8]]
    assert centre_of(places[5], box[0]) == 1
    # Of two boxes at one place, the smaller has it, whatever their order.
    two = np.array([[13.0, 13.0, 15.0, 15.0], [9.0, 9.0, 11.0, 10.0]], np.float32)
    for order in ([0, 1], [1, 0]):
        found = match_locations(places, np.array([0, 0]), two[order], True)
        assert found[5] == order.index(1)
        assert (found >= 0).sum() == 1


def test_a_small_box_goes_to_the_finest_level_and_a_large_one_to_the_coarsest():
    places, label = grid(8, 16, side=128), np.array([0])
    on = {
        side: {
            *places[match_locations(places, label, np.array([[64 - side / 2] * 2 + [64 + side / 2] * 2]), True) >= 0, 2]
        }
        for side in (1, 30, 120)
    }
    assert on[1] == on[30] == {8}
    assert on[120] == {16}


def test_centreness_is_that_of_the_paper():
    boxes = np.array([0.0, 0.0, 16.0, 8.0])
    value = centre_of(np.array([[8.0, 4.0, 8.0], [4.0, 4.0, 8.0], [12.0, 2.0, 8.0]]), boxes)
    np.testing.assert_allclose(value, [1, (4 / 12) ** 0.5, (4 / 12 * 2 / 6) ** 0.5], rtol=1e-6)


numbers = st.floats(0, 31, width=32)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(numbers, numbers, numbers, numbers, st.integers(-1, 2)), min_size=1, max_size=5))
def test_every_box_has_a_place_unless_smaller_ones_took_all_that_it_may_have(drawn):
    rows = np.array(drawn + [(0, 0, 0, 0, -1)] * (5 - len(drawn)), np.float32)
    boxes = np.concatenate([rows[:, :2], np.minimum(rows[:, :2] + rows[:, 2:4], 32)], 1)
    label = rows[:, 4].astype(np.int32)
    places = grid(8, 16)
    found = np.asarray(match_locations(places, label, boxes, True))
    area = np.prod(boxes[:, 2:] - boxes[:, :2], 1)
    assert (label[found[found >= 0]] >= 0).all()
    for i in np.flatnonzero(label >= 0):
        alone = match_locations(places, np.where(np.arange(5) == i, label, -1), boxes, True)
        may = np.asarray(alone) == i
        assert may.any()
        assert (area[found[may]] <= area[i]).all()


def test_what_is_said_inside_of_a_crowd_is_neither_right_nor_wrong():
    places = grid(8)
    logits, centre = jnp.zeros((1, len(places), 3)), jnp.zeros((1, len(places)))
    crowd, box = [0, 0, 16, 32], [2, 2, 14, 14]
    batch = {"label": jnp.array([[1, -2, -1]]), "boxes": jnp.array([[box, crowd, [0] * 4]], jnp.float32)}

    @jax.jit
    @jax.grad
    def slope(logits):
        outputs = outputs_of(logits, jnp.ones((1, len(places), 4)), centre, places)
        return loss_terms(outputs, batch).focal.sum()

    felt = np.abs(slope(logits)[0]).max(-1) > 0
    has_box = np.array([2 < y < 14 and 2 < x < 14 for y, x, _ in places])
    np.testing.assert_array_equal(felt, (places[:, 0] >= 16) | has_box)
