"""Metrics: scikit-learn's where it has them, ours by hand, and the corners."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from tljax.tasks.classification import calibration_error, details, roc_auc, scores

LABELS = np.array([0, 0, 1, 1, 2, 2])
PROBABILITIES = np.array(
    [[0.8, 0.1, 0.1], [0.4, 0.5, 0.1], [0.2, 0.7, 0.1], [0.1, 0.6, 0.3], [0.5, 0.2, 0.3], [0.1, 0.1, 0.8]]
)


def test_against_scikit_learn():
    predicted = PROBABILITIES.argmax(1)
    ours = scores(LABELS, PROBABILITIES)
    assert ours["accuracy"] == metrics.accuracy_score(LABELS, predicted)
    assert ours["f1_macro"] == pytest.approx(metrics.f1_score(LABELS, predicted, average="macro"))
    assert ours["roc_auc"] == pytest.approx(metrics.roc_auc_score(LABELS, PROBABILITIES, multi_class="ovr"))
    assert ours["loss"] == pytest.approx(metrics.log_loss(LABELS, PROBABILITIES))
    assert ours["top5"] == 1.0
    table = details(LABELS, PROBABILITIES, ("a", "b", "c"))
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
def test_random_predictions_against_scikit_learn(classes, n, seed):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.resize(np.arange(classes), n))
    probabilities = rng.dirichlet(np.ones(classes), n)
    ours = scores(labels, probabilities)
    top = metrics.top_k_accuracy_score(labels, probabilities, k=5) if classes > 5 else 1.0
    assert ours["top5"] == pytest.approx(top)
    if classes > 2:
        assert ours["roc_auc"] == pytest.approx(metrics.roc_auc_score(labels, probabilities, multi_class="ovr"))
    else:
        assert ours["roc_auc"] == pytest.approx(metrics.roc_auc_score(labels, probabilities[:, 1]))
    assert 0 <= ours["ece"] <= 1


def test_calibration_error_by_hand():
    # Two bins of fifteen: confidences 0.9, 0.9 (one right) and 0.6, 0.6 (both right).
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    labels = np.array([0, 1, 0, 0])
    assert calibration_error(labels, probabilities) == pytest.approx(0.5 * abs(0.5 - 0.9) + 0.5 * abs(1.0 - 0.6))
    assert calibration_error(np.array([0, 0]), np.array([[1.0, 0.0], [1.0, 0.0]])) == 0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_calibration_error_equals_torchmetrics(seed):
    expected = json.loads((Path(__file__).parent.parent / "golden" / "calibration.json").read_text())["ece"][seed]
    rng = np.random.default_rng(seed)
    probabilities, labels = rng.dirichlet([0.5] * 4, 200), rng.integers(0, 4, 200)
    assert calibration_error(labels, probabilities) == pytest.approx(expected, abs=1e-6)


def test_a_class_without_pictures_leaves_the_auc_open():
    assert roc_auc(np.array([0, 0, 1]), np.array([[0.5, 0.3, 0.2]] * 3)) is None
    ours = scores(np.array([0, 0, 1]), np.array([[0.5, 0.3, 0.2]] * 3))
    assert ours["accuracy"] == pytest.approx(2 / 3)
