"""Scores of segmentation beside scikit-learn's and SciPy's, and what must hold for any masks."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, special
from sklearn import metrics

from tljax.data import Split
from tljax.losses.pixelwise import IGNORED
from tljax.tasks.segmentation import SEGMENTATION

SHAPE = (2, 13, 19)
SPLIT = Split(np.zeros((1, 2, 2, 3), np.uint8), np.zeros((1, 2, 2), np.uint8))


# Compiling is what takes the time here.
answer = jax.jit(
    SEGMENTATION.predict,
    compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True},
)


def masks(seed, shape=SHAPE, classes=4, ignored=0.1):
    """Labels and predictions in blocks, the latter those of a network that is often right."""
    rng = np.random.default_rng(seed)
    n, height, width = shape
    blocks = rng.integers(0, classes, (2, n, -(-height // 3), -(-width // 3)))
    labels, guessed = np.kron(blocks, np.ones((3, 3), int))[:, :, :height, :width].astype(np.uint8)
    classes = np.where(rng.random(shape) < 0.6, labels, guessed).astype(np.uint8)
    labels[rng.random(shape) < ignored] = IGNORED
    return labels, classes


def logits_of(classes, count=4):
    return 4 * np.eye(count, dtype=np.float32)[classes]


def judged(labels, classes, count=4):
    """Scores and details of these maps."""
    rows = answer({"logits": logits_of(classes, count)}, {"label": labels})
    rows = {name: np.asarray(x) for name, x in rows.items()}
    names = tuple(str(i) for i in range(count))
    return SEGMENTATION.compute_metrics(rows, SPLIT, 8), SEGMENTATION.class_metrics(rows, SPLIT, 8, names)


def boundary_f1(labels, classes):
    """By distances in place of dilations, and loops in place of bits."""
    radius = max(1, math.ceil(0.008 * math.hypot(*labels.shape[1:])))

    def edges(x, kind):
        off = np.pad(x != kind, 1)  # beyond the picture nothing is of another class
        return (x == kind) & (off[:-2, 1:-1] | off[2:, 1:-1] | off[1:-1, :-2] | off[1:-1, 2:])

    def hits(mine, other):
        return (mine & (ndimage.distance_transform_edt(~other) <= radius)).sum() if other.any() else 0

    f1 = []
    for kind in np.setdiff1d([labels, classes], [IGNORED]):
        table = np.zeros(4)
        for true, guess in zip(labels, np.where(labels == IGNORED, IGNORED, classes), strict=True):
            a, b = edges(guess, kind), edges(true, kind)
            table += a.sum(), hits(a, b), b.sum(), hits(b, a)
        if table[0] or table[2]:
            precision, recall = table[1] / max(table[0], 1), table[3] / max(table[2], 1)
            f1.append(2 * precision * recall / (precision + recall) if table[1] else 0)
    return np.mean(f1) if f1 else None


def test_scores_and_details_are_scikit_learns():
    labels, classes = masks(0)
    found, more = judged(labels, classes)
    true, guess = labels[labels != IGNORED], classes[labels != IGNORED]
    assert found["miou"] == pytest.approx(metrics.jaccard_score(true, guess, average="macro"))
    assert found["dice"] == pytest.approx(metrics.f1_score(true, guess, average="macro"))
    assert found["pixel_accuracy"] == pytest.approx(metrics.accuracy_score(true, guess))
    chances = special.softmax(logits_of(guess).astype(np.float64), axis=1)
    assert found["loss"] == pytest.approx(metrics.log_loss(true, chances), rel=1e-5)
    assert more["confusion"] == metrics.confusion_matrix(true, guess).tolist()
    table = metrics.precision_recall_fscore_support(true, guess)
    for key, column in zip(("precision", "recall", "dice", "pixels"), table, strict=True):
        np.testing.assert_allclose([row[key] for row in more["per_class"]], column)
    ious = metrics.jaccard_score(true, guess, average=None)
    np.testing.assert_allclose([row["iou"] for row in more["per_class"]], ious)
    json.dumps([found, more], allow_nan=False)


@settings(deadline=None, max_examples=12)
@given(
    seed=st.integers(0, 999),
    shape=st.sampled_from([(1, 1, 9), (3, 7, 2), SHAPE]),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_counts_add_up_and_the_boundary_is_that_of_brute_force(seed, shape, ignored):
    labels, classes = masks(seed, shape, ignored=ignored)
    found, more = judged(labels, classes)
    known = labels != IGNORED
    assert np.sum(more["confusion"]) == known.sum()
    assert [row["pixels"] for row in more["per_class"]] == [(labels == c).sum() for c in range(4)]
    expected = boundary_f1(labels, classes)
    assert found["boundary_f1"] == (None if expected is None else pytest.approx(expected))
    if not known.any():
        assert set(found.values()) == {None}


def test_a_boundary_may_be_as_far_off_as_the_tolerance_for_many_classes_at_once():
    # The diagonal is 201: boundaries count up to 2 pixels away. Classes 31 and 32 are in different words of bits.
    labels = np.zeros((1, 40, 197), np.uint8)
    labels[:, 5:15, 10:30], labels[:, 20:30, 40:70] = 31, 32
    shifted = {by: np.roll(labels, (by, 0), (1, 2)) for by in (0, 2, 3)}
    tables = {}
    for by, guess in shifted.items():
        rows = {name: np.asarray(x) for name, x in answer({"logits": logits_of(guess, 70)}, {"label": labels}).items()}
        table = tables[by] = rows["boundary"][0]
        f1 = SEGMENTATION.compute_metrics(rows, SPLIT, 8)["boundary_f1"]
        assert f1 == pytest.approx(boundary_f1(labels, shifted[by]))
        assert (table.sum(1) > 0).tolist() == [c in (0, 31, 32) for c in range(70)]
        assert (table[:, [0, 2]] == table[:, [1, 3]]).all() == (by < 3)
    assert tables[0][31].tolist() == [56] * 4  # 10 by 20 pixels have 2 (10 + 20) - 4 on their rim


def test_objects_outlined_by_pixels_that_do_not_count_have_a_boundary():
    labels = np.zeros(SHAPE, np.uint8)
    labels[:, 2:11, 3:16], labels[:, 4:9, 5:14] = IGNORED, 1
    guess = np.zeros_like(labels)
    guess[:, 3:10, 4:15] = 1
    assert judged(labels, guess)[0]["boundary_f1"] == 1.0
    assert judged(labels, np.zeros_like(labels))[0]["boundary_f1"] < 0.6


def test_a_class_that_occurs_nowhere_is_left_out_of_the_means():
    labels = np.full(SHAPE, IGNORED, np.uint8)
    guess = np.zeros_like(labels)
    labels[0, :2, :2], guess[0, :2, :2] = [[0, 0], [1, 1]], [[0, 2], [1, 1]]
    found, more = judged(labels, guess)
    assert found["miou"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert found["dice"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    absent = {"iou": None, "dice": None, "precision": None, "recall": None, "pixels": 0}
    assert more["per_class"][3] == {"class": "3", **absent}
    assert more["per_class"][2] == {"class": "2", "iou": 0.0, "dice": 0.0, "precision": 0.0, "recall": 0.0, "pixels": 0}


def test_a_picture_without_a_pixel_that_counts_adds_nothing_to_its_split():
    labels, classes = masks(1)
    labels[1] = IGNORED
    known = labels[0] != IGNORED
    right = (classes[0] == labels[0])[known].mean()
    found, _ = judged(labels, classes)
    expected = metrics.jaccard_score(labels[0][known], classes[0][known], average="macro")
    assert (found["miou"], found["pixel_accuracy"]) == pytest.approx((expected, right))
    share = SEGMENTATION.train_metric({"logits": logits_of(classes)}, {"label": jnp.asarray(labels)})
    np.testing.assert_allclose(share, [right, 1], rtol=1e-6)


def test_answers_are_on_the_grid_of_the_labels_or_else_of_the_picture():
    logits = jnp.asarray(logits_of(np.array([[[0, 1], [2, 3]]])))
    quarters = np.kron([[0, 1], [2, 3]], np.ones((3, 4), int))
    found = answer({"logits": logits}, {"image": np.zeros((1, 6, 8, 3), np.uint8)})
    assert found.keys() == {"classes"}
    assert found["classes"].dtype == jnp.uint8
    np.testing.assert_array_equal(found["classes"][0], quarters)
    labels, image = np.uint8(quarters[None]), np.zeros((1, 2, 2, 3), np.uint8)
    found = answer({"logits": logits}, {"label": labels, "image": image})
    assert found["counted"].tolist() == [48]
    np.testing.assert_array_equal(found["confusion"][0], 12 * np.eye(4))
    assert answer({"logits": logits}, {})["classes"].shape == (1, 2, 2)
