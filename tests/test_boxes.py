"""Box overlaps and non-maximum suppression compared with reference implementations."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tljax.ops import boxes

GOLDEN = np.load(Path(__file__).parents[0] / "golden" / "boxes.npz")
A = jnp.asarray(GOLDEN["boxes"][:20], jnp.float32)
B = jnp.asarray(GOLDEN["boxes"][20:], jnp.float32)


def test_iou_and_giou_match_torchvision():
    np.testing.assert_allclose(boxes.pairwise_iou(A, B), GOLDEN["iou"], atol=1e-6)
    np.testing.assert_allclose(boxes.giou(A, B), GOLDEN["giou"], atol=1e-6)


@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_nms_matches_tensorflow(threshold):
    all_boxes, scores, classes = (jnp.asarray(GOLDEN[name]) for name in ("boxes", "scores", "classes"))
    result = boxes.nms(all_boxes, scores, classes, threshold, min_score=-1.0, max_boxes=60)
    assert result.index[result.valid].tolist() == GOLDEN[f"nms{threshold}"].tolist()
    assert result.index.shape == (60,)
    result = boxes.nms(all_boxes, scores, classes, threshold, min_score=0.5, max_boxes=4)
    assert result.index.tolist() == [i for i in GOLDEN[f"nms{threshold}"] if GOLDEN["scores"][i] > 0.5][:4]


def test_nms_of_a_batch():
    all_boxes = jnp.stack([jnp.asarray(GOLDEN["boxes"], jnp.float32)] * 2)
    scores = jnp.stack([jnp.asarray(GOLDEN["scores"]), jnp.zeros(40)])
    classes = jnp.stack([jnp.asarray(GOLDEN["classes"])] * 2)
    result = jax.vmap(lambda *x: boxes.nms(*x, 0.5, 0.0, 10))(all_boxes, scores, classes)
    assert result.index[0].tolist() == GOLDEN["nms0.5"][:10].tolist()
    assert not result.valid[1].any()


coordinates = st.floats(0, 50, width=32)


@settings(deadline=None)
@given(st.tuples(*[coordinates] * 4), st.tuples(*[coordinates] * 4))
def test_iou_and_giou_are_symmetric_and_bounded(a, b):
    a = jnp.array(a)
    b = jnp.array(b)
    iou = float(boxes.iou(a, b))
    giou = float(boxes.giou(a, b))
    assert (iou, giou) == (float(boxes.iou(b, a)), float(boxes.giou(b, a)))
    assert 0 <= iou <= 1 + 1e-6
    assert -1 - 1e-6 <= giou <= iou + 1e-6


def test_empty_boxes_have_no_overlap_and_finite_gradients():
    empty = jnp.array([[3.0, 3.0, 3.0, 3.0], [5.0, 5.0, 2.0, 9.0]])
    assert not boxes.pairwise_iou(empty, empty).any()
    for overlap in (boxes.iou, boxes.giou):
        gradient = jax.grad(lambda a, overlap=overlap: overlap(a, empty).sum())(empty)
        assert jnp.isfinite(gradient).all()


def test_clip():
    assert boxes.clip(jnp.array([[-5.0, 2.0, 30.0, 70.0]]), 20, 40).tolist() == [[0, 2, 20, 40]]
