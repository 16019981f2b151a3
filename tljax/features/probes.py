"""Probes: standard classifiers fitted on the features of a frozen network.

A probe has a grid of values of one hyperparameter and a function `fit(features, labels, classes, value)`; `fit_best`
selects the value by validation metrics. Features are [N, D], labels are integers [N] in 0..classes-1. Probabilities
have a column for every class, even if the labels do not contain it.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import linalg, optimize, special
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tljax.tasks import classification

PredictFn = Callable[[np.ndarray], np.ndarray]
FeatureRows = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Probe:
    """A classifier with one hyperparameter.

    Attributes:
      setting: name of the hyperparameter.
      values: grid of values, the strongest regularization first.
      fit: (features, labels, classes, value) → function from features [N, D] to probabilities [N, classes].
      is_neighbor_count: whether the hyperparameter is a number of training images, so that larger values are skipped.
    """

    hparam: str
    values: tuple[float, ...]
    fit: Callable[[np.ndarray, np.ndarray, int, float], PredictFn]
    is_neighbor_count: bool = False


@dataclasses.dataclass(frozen=True)
class FittedProbe:
    """A fitted probe.

    Attributes:
      value: value of the hyperparameter.
      predict: function from features [N, D] to probabilities [N, classes].
      scores: metrics on the validation features.
    """

    value: float
    predict: PredictFn
    scores: dict[str, Any]

    @property
    def ranking_key(self) -> tuple[float, float]:
        """Sort key of which larger is better: accuracy, then negative loss."""
        return self.scores["accuracy"], -self.scores["loss"]


def fit_best(probe: Probe, train: FeatureRows, valid: FeatureRows, classes: int) -> FittedProbe:
    """Return the probe fitted with the best value of its grid.

    The best value has the highest validation accuracy, then the lowest loss, then the strongest regularization.

    Args:
      probe: the classifier.
      train: features and labels to fit on.
      valid: features and labels to evaluate on.
      classes: number of classes.
    """
    best = None
    for value in probe.values:
        if probe.is_neighbor_count and value > len(train[1]):
            continue
        predict = probe.fit(*train, classes, value)
        fitted = FittedProbe(value, predict, classification.compute_metrics(valid[1], predict(valid[0])))
        if best is None or fitted.ranking_key > best.ranking_key:
            best = fitted
    assert best is not None  # a value of every grid fits
    return best


def logistic(features: np.ndarray, labels: np.ndarray, classes: int, c: float) -> PredictFn:
    """Fit multinomial logistic regression on standardized features; `c` is the inverse of the L2 penalty.

    Raises:
      ValueError: all labels are equal.
    """
    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000))
    with warnings.catch_warnings():
        # With a weak penalty and separable features the solver does not converge; validation metrics decide.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features, labels)
    return lambda x: _expand_columns(model.predict_proba(x), model.classes_, classes)


def ridge(features: np.ndarray, labels: np.ndarray, classes: int, alpha: float) -> PredictFn:
    """Fit ridge regression of one-hot labels on standardized features; `alpha` is the L2 penalty.

    The closed form is solved in float64 over features or images, whichever are fewer. The intercept is not penalized.
    Probabilities are the softmax of the scores times a factor, which minimizes the loss of the leave-one-out scores of
    the training images and does not change the predicted class. With one image per class the leave-one-out scores
    contain no information, and the probabilities are uniform.
    """
    scaler: Any = StandardScaler().fit(features.astype(np.float64))
    weights, mean, held_out = solve_ridge(scaler.transform(features.astype(np.float64)), labels, classes, alpha)

    def loss(log_factor: float) -> float:
        likelihood = special.log_softmax(np.exp(log_factor) * held_out, axis=1)
        return -likelihood[np.arange(len(labels)), labels].mean()

    minimum: Any = optimize.minimize_scalar(loss, bounds=np.log([1e-3, 1e3]), method="bounded")
    factor = np.exp(minimum.x)
    return lambda x: special.softmax(factor * (scaler.transform(x.astype(np.float64)) @ weights + mean), axis=1)


def solve_ridge(x: np.ndarray, labels: np.ndarray, classes: int, alpha: float):
    """Solve ridge regression of one-hot labels on centered float64 features `x` [N, D].

    Returns:
      Weights [D, classes], intercept [classes], and leave-one-out scores [N, classes] of the training images:
      `y - (y - ŷ) / (1 - h)`, where h is the diagonal of the hat matrix.
    """
    one_hot = np.eye(classes)[labels]
    mean = one_hot.mean(0)
    if x.shape[1] <= len(x):
        hat = linalg.solve(x.T @ x + alpha * np.eye(x.shape[1]), x.T, assume_a="pos")
    else:
        hat = linalg.solve(x @ x.T + alpha * np.eye(len(x)), x, assume_a="pos").T
    weights = hat @ (one_hot - mean)
    leverage = 1 / len(x) + np.einsum("nd,dn->n", x, hat)
    residual = (one_hot - mean - x @ weights) / np.maximum(1 - leverage, 1e-9)[:, None]
    return weights, mean, one_hot - residual


def knn(features: np.ndarray, labels: np.ndarray, classes: int, k: float) -> PredictFn:
    """Fit a classifier by the `k` nearest training images in cosine distance, weighted by the inverse distance.

    One additional vote is spread evenly over the classes, so that no probability is zero.
    """
    model = KNeighborsClassifier(n_neighbors=int(k), metric="cosine", weights="distance").fit(features, labels)
    return lambda x: (k * _expand_columns(model.predict_proba(x), model.classes_, classes) + 1 / classes) / (k + 1)


def _expand_columns(probabilities: np.ndarray, present: np.ndarray, classes: int) -> np.ndarray:
    """Return probabilities [N, present classes] as [N, classes] in float64, 0 for classes without a training image."""
    expanded = np.zeros((len(probabilities), classes))
    expanded[:, present] = probabilities
    return expanded / expanded.sum(1, keepdims=True)


PROBES = {
    "logistic": Probe("C", tuple(10.0**e for e in range(-4, 5)), logistic),
    "ridge": Probe("alpha", tuple(10.0**e for e in range(6, -3, -1)), ridge),
    "knn": Probe("k", (200, 100, 50, 20, 10, 5, 3, 1), knn, is_neighbor_count=True),
}
