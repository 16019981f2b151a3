"""Segmentation metrics, against scikit-learn and brute force."""

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


# Compilation dominates the time of these tests.
predict = jax.jit(
    SEGMENTATION.predict,
    compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True},
)


def make_masks(seed, shape=SHAPE, num_classes=4, ignored=0.1):
    """Return labels and predictions in blocks of 3 x 3 pixels; the predictions are often correct."""
    rng = np.random.default_rng(seed)
    n, height, width = shape
    blocks = rng.integers(0, num_classes, (2, n, -(-height // 3), -(-width // 3)))
    labels, other = np.kron(blocks, np.ones((3, 3), int))[:, :, :height, :width].astype(np.uint8)
    predicted = np.where(rng.random(shape) < 0.6, labels, other).astype(np.uint8)
    labels[rng.random(shape) < ignored] = IGNORED
    return labels, predicted


def make_logits(classes, num_classes=4):
    return 4 * np.eye(num_classes, dtype=np.float32)[classes]


def evaluate(labels, predicted, num_classes=4):
    """Return the metrics and class metrics of these masks."""
    predictions = predict({"logits": make_logits(predicted, num_classes)}, {"label": labels})
    predictions = {name: np.asarray(x) for name, x in predictions.items()}
    names = tuple(str(i) for i in range(num_classes))
    class_metrics = SEGMENTATION.class_metrics(predictions, SPLIT, 8, names)
    return SEGMENTATION.compute_metrics(predictions, SPLIT, 8), class_metrics


def boundary_f1(labels, predicted):
    """Compute the boundary F1 with distances in place of dilations, and loops in place of bit masks."""
    radius = max(1, math.ceil(0.008 * math.hypot(*labels.shape[1:])))

    def edges(mask, label):
        other = np.pad(mask != label, 1)  # the edge of the image is no boundary
        return (mask == label) & (other[:-2, 1:-1] | other[2:, 1:-1] | other[1:-1, :-2] | other[1:-1, 2:])

    def count_matches(edge, other):
        return (edge & (ndimage.distance_transform_edt(~other) <= radius)).sum() if other.any() else 0

    f1 = []
    for label in np.setdiff1d([labels, predicted], [IGNORED]):
        counts = np.zeros(4)
        for true_mask, mask in zip(labels, np.where(labels == IGNORED, IGNORED, predicted), strict=True):
            edge = edges(mask, label)
            true_edge = edges(true_mask, label)
            counts += edge.sum(), count_matches(edge, true_edge), true_edge.sum(), count_matches(true_edge, edge)
        if counts[0] or counts[2]:
            precision = counts[1] / max(counts[0], 1)
            recall = counts[3] / max(counts[2], 1)
            f1.append(2 * precision * recall / (precision + recall) if counts[1] else 0)
    return np.mean(f1) if f1 else None


def test_metrics_match_scikit_learn():
    labels, predicted = make_masks(0)
    computed, by_class = evaluate(labels, predicted)
    valid = labels != IGNORED
    true = labels[valid]
    predicted = predicted[valid]
    assert computed["miou"] == pytest.approx(metrics.jaccard_score(true, predicted, average="macro"))
    assert computed["dice"] == pytest.approx(metrics.f1_score(true, predicted, average="macro"))
    assert computed["pixel_accuracy"] == pytest.approx(metrics.accuracy_score(true, predicted))
    probabilities = special.softmax(make_logits(predicted).astype(np.float64), axis=1)
    assert computed["loss"] == pytest.approx(metrics.log_loss(true, probabilities), rel=1e-5)
    assert by_class["confusion"] == metrics.confusion_matrix(true, predicted).tolist()
    table = metrics.precision_recall_fscore_support(true, predicted)
    for key, column in zip(("precision", "recall", "dice", "pixels"), table, strict=True):
        np.testing.assert_allclose([row[key] for row in by_class["per_class"]], column)
    iou = metrics.jaccard_score(true, predicted, average=None)
    np.testing.assert_allclose([row["iou"] for row in by_class["per_class"]], iou)
    json.dumps([computed, by_class], allow_nan=False)


@settings(deadline=None, max_examples=12)
@given(
    seed=st.integers(0, 999),
    shape=st.sampled_from([(1, 1, 9), (3, 7, 2), SHAPE]),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_counts_and_boundary_f1_match_brute_force(seed, shape, ignored):
    labels, predicted = make_masks(seed, shape, ignored=ignored)
    computed, by_class = evaluate(labels, predicted)
    valid = labels != IGNORED
    assert np.sum(by_class["confusion"]) == valid.sum()
    assert [row["pixels"] for row in by_class["per_class"]] == [(labels == c).sum() for c in range(4)]
    expected = boundary_f1(labels, predicted)
    assert computed["boundary_f1"] == (None if expected is None else pytest.approx(expected))
    if not valid.any():
        assert set(computed.values()) == {None}


def test_boundary_tolerance_with_many_classes():
    # The diagonal is 201: boundaries match up to 2 pixels away. Classes 31 and 32 are in different words of bits.
    labels = np.zeros((1, 40, 197), np.uint8)
    labels[:, 5:15, 10:30] = 31
    labels[:, 20:30, 40:70] = 32
    counts = {}
    for shift in (0, 2, 3):
        predicted = np.roll(labels, (shift, 0), (1, 2))
        predictions = predict({"logits": make_logits(predicted, 70)}, {"label": labels})
        predictions = {name: np.asarray(x) for name, x in predictions.items()}
        boundary = counts[shift] = predictions["boundary"][0]
        f1 = SEGMENTATION.compute_metrics(predictions, SPLIT, 8)["boundary_f1"]
        assert f1 == pytest.approx(boundary_f1(labels, predicted))
        assert (boundary.sum(1) > 0).tolist() == [c in (0, 31, 32) for c in range(70)]
        assert (boundary[:, [0, 2]] == boundary[:, [1, 3]]).all() == (shift < 3)
    assert counts[0][31].tolist() == [56] * 4  # 10 x 20 pixels have 2 (10 + 20) - 4 on their boundary


def test_objects_outlined_by_ignored_pixels_have_boundary():
    labels = np.zeros(SHAPE, np.uint8)
    labels[:, 2:11, 3:16] = IGNORED
    labels[:, 4:9, 5:14] = 1
    predicted = np.zeros_like(labels)
    predicted[:, 3:10, 4:15] = 1
    assert evaluate(labels, predicted)[0]["boundary_f1"] == 1.0
    assert evaluate(labels, np.zeros_like(labels))[0]["boundary_f1"] < 0.6


def test_absent_class_is_excluded_from_means():
    labels = np.full(SHAPE, IGNORED, np.uint8)
    predicted = np.zeros_like(labels)
    labels[0, :2, :2] = [[0, 0], [1, 1]]
    predicted[0, :2, :2] = [[0, 2], [1, 1]]
    computed, by_class = evaluate(labels, predicted)
    assert computed["miou"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert computed["dice"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    ratios = ("iou", "dice", "precision", "recall")
    assert by_class["per_class"][3] == {"class": "3", **dict.fromkeys(ratios), "pixels": 0}
    assert by_class["per_class"][2] == {"class": "2", **dict.fromkeys(ratios, 0.0), "pixels": 0}


def test_fully_ignored_image_adds_nothing():
    labels, predicted = make_masks(1)
    labels[1] = IGNORED
    valid = labels[0] != IGNORED
    accuracy = (predicted[0] == labels[0])[valid].mean()
    computed, _ = evaluate(labels, predicted)
    miou = metrics.jaccard_score(labels[0][valid], predicted[0][valid], average="macro")
    assert (computed["miou"], computed["pixel_accuracy"]) == pytest.approx((miou, accuracy))
    train_metric = SEGMENTATION.train_metric({"logits": make_logits(predicted)}, {"label": jnp.asarray(labels)})
    np.testing.assert_allclose(train_metric, [accuracy, 1], rtol=1e-6)


def test_predict_resizes_to_labels_or_image():
    logits = jnp.asarray(make_logits(np.array([[[0, 1], [2, 3]]])))
    quarters = np.kron([[0, 1], [2, 3]], np.ones((3, 4), int))
    predictions = predict({"logits": logits}, {"image": np.zeros((1, 6, 8, 3), np.uint8)})
    assert predictions.keys() == {"classes"}
    assert predictions["classes"].dtype == jnp.uint8
    np.testing.assert_array_equal(predictions["classes"][0], quarters)
    labels = np.uint8(quarters[None])
    image = np.zeros((1, 2, 2, 3), np.uint8)
    predictions = predict({"logits": logits}, {"label": labels, "image": image})
    assert predictions["counted"].tolist() == [48]
    np.testing.assert_array_equal(predictions["confusion"][0], 12 * np.eye(4))
    assert predict({"logits": logits}, {})["classes"].shape == (1, 2, 2)
