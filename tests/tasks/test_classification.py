"""Classification metrics, against scikit-learn and torchmetrics."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from tljax.tasks.classification import (
    best_thresholds,
    calibration_error,
    class_metrics,
    compute_metrics,
    metrics_at_thresholds,
    roc_auc,
)

LABELS = np.array([0, 0, 1, 1, 2, 2])
PROBABILITIES = np.array(
    [[0.8, 0.1, 0.1], [0.4, 0.5, 0.1], [0.2, 0.7, 0.1], [0.1, 0.6, 0.3], [0.5, 0.2, 0.3], [0.1, 0.1, 0.8]]
)


def test_metrics_match_scikit_learn():
    predicted = PROBABILITIES.argmax(1)
    computed = compute_metrics(LABELS, PROBABILITIES)
    assert computed["accuracy"] == metrics.accuracy_score(LABELS, predicted)
    assert computed["f1_macro"] == pytest.approx(metrics.f1_score(LABELS, predicted, average="macro"))
    assert computed["roc_auc"] == pytest.approx(metrics.roc_auc_score(LABELS, PROBABILITIES, multi_class="ovr"))
    assert computed["loss"] == pytest.approx(metrics.log_loss(LABELS, PROBABILITIES))
    assert computed["top5"] == 1.0
    table = class_metrics(LABELS, PROBABILITIES, ("a", "b", "c"))
    assert table["confusion"] == metrics.confusion_matrix(LABELS, predicted).tolist()
    assert table["per_class"][2] == {
        "class": "c",
        "precision": 1.0,
        "recall": 0.5,
        "f1": pytest.approx(2 / 3),
        "support": 2,
    }


@settings(deadline=None)
@given(st.integers(2, 8), st.integers(10, 60), st.integers(0, 99))
def test_random_metrics_match_scikit_learn(classes, n, seed):
    rng = np.random.default_rng(seed)
    # Classes of different sizes, each with at least one image.
    labels = rng.permutation(np.r_[np.arange(classes), rng.integers(0, (classes + 1) // 2, n - classes)])
    probabilities = rng.dirichlet(np.ones(classes), n)
    computed = compute_metrics(labels, probabilities)
    macro = metrics.precision_recall_fscore_support(
        labels, probabilities.argmax(1), labels=np.arange(classes), average="macro", zero_division=0
    )
    assert [computed[f"{name}_macro"] for name in ("precision", "recall", "f1")] == pytest.approx(macro[:3])
    top = metrics.top_k_accuracy_score(labels, probabilities, k=5) if classes > 5 else 1.0
    assert computed["top5"] == pytest.approx(top)
    if classes > 2:
        assert computed["roc_auc"] == pytest.approx(metrics.roc_auc_score(labels, probabilities, multi_class="ovr"))
    else:
        assert computed["roc_auc"] == pytest.approx(metrics.roc_auc_score(labels, probabilities[:, 1]))
    assert 0 <= computed["ece"] <= 1


def test_calibration_error_of_small_example():
    # Two of fifteen bins: confidences 0.9, 0.9 (one correct) and 0.6, 0.6 (both correct).
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    labels = np.array([0, 1, 0, 0])
    assert calibration_error(labels, probabilities) == pytest.approx(0.5 * abs(0.5 - 0.9) + 0.5 * abs(1.0 - 0.6))
    assert calibration_error(np.array([0, 0]), np.array([[1.0, 0.0], [1.0, 0.0]])) == 0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_calibration_error_matches_torchmetrics(seed):
    expected = json.loads((Path(__file__).parent.parent / "golden" / "calibration.json").read_text())["ece"][seed]
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet([0.5] * 4, 200)
    labels = rng.integers(0, 4, 200)
    assert calibration_error(labels, probabilities) == pytest.approx(expected, abs=1e-6)


def test_roc_auc_is_none_if_a_class_has_no_images():
    assert roc_auc(np.array([0, 0, 1]), np.array([[0.5, 0.3, 0.2]] * 3)) is None
    computed = compute_metrics(np.array([0, 0, 1]), np.array([[0.5, 0.3, 0.2]] * 3))
    assert computed["accuracy"] == pytest.approx(2 / 3)


def test_best_thresholds_maximize_f1():
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 3, 60)
    test_labels = rng.integers(0, 3, 40)
    scores = rng.dirichlet(np.ones(4), 60)
    test_scores = rng.dirichlet(np.ones(4), 40)
    thresholds = best_thresholds(labels, scores)
    assert np.isnan(thresholds[3])  # a class without images
    for c in range(3):
        all_f1 = [metrics.f1_score(labels == c, scores[:, c] >= t) for t in scores[:, c]]
        assert metrics.f1_score(labels == c, scores[:, c] >= thresholds[c]) == max(all_f1)
    rows = metrics_at_thresholds(test_labels, test_scores, thresholds, ("a", "b", "c", "d"))["thresholded"]
    assert [row["class"] for row in rows] == ["a", "b", "c", "d"]
    assert rows[3] == {"class": "d", "threshold": None, "precision": None, "recall": None, "f1": None}
    for c in range(3):
        predicted = test_scores[:, c] >= thresholds[c]
        true = test_labels == c
        assert rows[c]["precision"] == pytest.approx((predicted & true).sum() / max(1, predicted.sum()))
        assert rows[c]["recall"] == pytest.approx((predicted & true).sum() / true.sum())
