from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tljax.ops import boxes

GOLDEN = np.load(Path(__file__).parents[0] / "golden" / "boxes.npz")
A, B = (jnp.asarray(GOLDEN["boxes"][part], jnp.float32) for part in (slice(20), slice(20, None)))


def test_overlaps_equal_torchvisions():
    np.testing.assert_allclose(boxes.pairwise_iou(A, B), GOLDEN["iou"], atol=1e-6)
    np.testing.assert_allclose(boxes.giou(A, B), GOLDEN["giou"], atol=1e-6)


@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_suppression_equals_tensorflows(threshold):
    every, scores, classes = (jnp.asarray(GOLDEN[name]) for name in ("boxes", "scores", "classes"))
    kept = boxes.nms(every, scores, classes, threshold, min_score=-1.0, max_boxes=60)
    assert kept.index[kept.valid].tolist() == GOLDEN[f"nms{threshold}"].tolist()
    assert kept.index.shape == (60,)
    few = boxes.nms(every, scores, classes, threshold, min_score=0.5, max_boxes=4)
    assert few.index.tolist() == [i for i in GOLDEN[f"nms{threshold}"] if GOLDEN["scores"][i] > 0.5][:4]


def test_suppression_is_the_same_for_a_batch():
    every = jnp.stack([jnp.asarray(GOLDEN["boxes"], jnp.float32)] * 2)
    scores = jnp.stack([jnp.asarray(GOLDEN["scores"]), jnp.zeros(40)])
    classes = jnp.stack([jnp.asarray(GOLDEN["classes"])] * 2)
    kept = jax.vmap(lambda *x: boxes.nms(*x, 0.5, 0.0, 10))(every, scores, classes)
    assert kept.index[0].tolist() == GOLDEN["nms0.5"][:10].tolist()
    assert not kept.valid[1].any()


sides = st.floats(0, 50, width=32)


@settings(deadline=None)
@given(st.tuples(sides, sides, sides, sides), st.tuples(sides, sides, sides, sides))
def test_overlaps_are_symmetric_and_bounded_whatever_the_boxes(a, b):
    a, b = jnp.array(a), jnp.array(b)
    both = float(boxes.iou(a, b)), float(boxes.giou(a, b))
    assert both == (float(boxes.iou(b, a)), float(boxes.giou(b, a)))
    assert 0 <= both[0] <= 1 + 1e-6
    assert -1 - 1e-6 <= both[1] <= both[0] + 1e-6


def test_boxes_without_area_overlap_nothing_and_have_finite_gradients():
    empty = jnp.array([[3.0, 3.0, 3.0, 3.0], [5.0, 5.0, 2.0, 9.0]])
    assert not boxes.pairwise_iou(empty, empty).any()
    for of in (boxes.iou, boxes.giou):
        assert jnp.isfinite(jax.grad(lambda a, of=of: of(a, empty).sum())(empty)).all()


def test_clipping_leaves_what_lies_on_the_picture():
    assert boxes.clip(jnp.array([[-5.0, 2.0, 30.0, 70.0]]), 20, 40).tolist() == [[0, 2, 20, 40]]
