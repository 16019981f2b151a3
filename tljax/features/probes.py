"""Ready classifiers on features: what a frozen network knows, without training it.

A probe is a grid of one number and a function `fit(features, labels, classes, value)`; `choose` takes the number that
is best on validation. Features are [N, D], labels integers [N] in 0..classes-1, of which some may be missing: every
class has its column of probabilities all the same.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable

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
    """A classifier with one number to choose.

    Attributes:
      setting: name of the number.
      values: the grid, the strongest regularisation first.
      fit: (features, labels, classes, value) → predictor, from features [N, D] to probabilities [N, classes].
      neighbours: whether the number counts training pictures, so that there may not be more.
    """

    setting: str
    values: tuple[float, ...]
    fit: Callable[[np.ndarray, np.ndarray, int, float], PredictFn]
    neighbours: bool = False


@dataclasses.dataclass(frozen=True)
class FittedProbe:
    """A fitted probe: its setting's `value`, how to `predict`, and its `scores` on validation."""

    value: float
    predict: PredictFn
    scores: dict[str, float | None]

    @property
    def rank(self) -> tuple[float, float]:
        """The larger, the better: accuracy, then less loss."""
        return self.scores["accuracy"], -self.scores["loss"]


def fit_best(probe: Probe, train: FeatureRows, valid: FeatureRows, classes: int) -> FittedProbe:
    """Fits every setting on `train` and takes the best on `valid`, both pairs of features and labels.

    Best is the highest accuracy, of equals the lowest loss, of equals the strongest regularisation.
    """
    best = None
    for value in probe.values:
        if probe.neighbours and value > len(train[1]):
            continue
        predict = probe.fit(*train, classes, value)
        found = FittedProbe(value, predict, classification.compute_metrics(valid[1], predict(valid[0])))
        if best is None or found.rank > best.rank:
            best = found
    return best


def logistic(features: np.ndarray, labels: np.ndarray, classes: int, c: float) -> PredictFn:
    """Multinomial logistic regression on standardised features; `c` is scikit-learn's C, the inverse of the L2 penalty.

    Raises:
      ValueError: labels of one class alone.
    """
    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000))
    with warnings.catch_warnings():
        # Hardly any penalty on separable pictures has no end; where it stops is judged on validation like the others.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features, labels)
    return lambda x: _in_columns(model.predict_proba(x), model.classes_, classes)


def ridge(features: np.ndarray, labels: np.ndarray, classes: int, alpha: float) -> PredictFn:
    """Least squares towards one-hot labels, in closed form, on standardised features; `alpha` is the L2 penalty.

    Solved in float64 over features or over pictures, whichever are fewer: with few labels, that is milliseconds however
    wide the features. The intercept is not penalised. Probabilities are the softmax of the scores times the one factor
    at which the leave-one-out scores of the training pictures, also in closed form, have the least loss; the factor
    changes no prediction. With one picture a class, those scores know nothing, and the probabilities come out even.
    """
    scaler = StandardScaler().fit(features.astype(np.float64))
    weights, mean, held_out = solve_ridge(scaler.transform(features.astype(np.float64)), labels, classes, alpha)

    def loss(log_factor: float) -> float:
        likelihood = special.log_softmax(np.exp(log_factor) * held_out, axis=1)
        return -likelihood[np.arange(len(labels)), labels].mean()

    factor = np.exp(optimize.minimize_scalar(loss, bounds=np.log([1e-3, 1e3]), method="bounded").x)
    return lambda x: special.softmax(factor * (scaler.transform(x.astype(np.float64)) @ weights + mean), axis=1)


def solve_ridge(x: np.ndarray, labels: np.ndarray, classes: int, alpha: float):
    """Ridge regression of one-hot labels on centred float64 features `x` [N, D].

    Returns:
      Weights [D, classes], intercept [classes], and the scores [N, classes] that each picture would get from the
      regression on all others: `y - (y - ŷ) / (1 - h)`, with h the diagonal of the hat matrix.
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
    """The `k` nearest training pictures by cosine distance vote, each with the inverse of its distance.

    One vote more is spread evenly over the classes, so that none is held impossible for want of a neighbour.
    """
    model = KNeighborsClassifier(n_neighbors=int(k), metric="cosine", weights="distance").fit(features, labels)
    return lambda x: (k * _in_columns(model.predict_proba(x), model.classes_, classes) + 1 / classes) / (k + 1)


def _in_columns(probabilities: np.ndarray, known: np.ndarray, classes: int) -> np.ndarray:
    """Probabilities [N, known classes] as [N, classes] in float64, zero for classes without a training picture."""
    wide = np.zeros((len(probabilities), classes))
    wide[:, known] = probabilities
    return wide / wide.sum(1, keepdims=True)


PROBES = {
    "logistic": Probe("C", tuple(10.0**e for e in range(-4, 5)), logistic),
    "ridge": Probe("alpha", tuple(10.0**e for e in range(6, -3, -1)), ridge),
    "knn": Probe("k", (200, 100, 50, 20, 10, 5, 3, 1), knn, neighbours=True),
}
