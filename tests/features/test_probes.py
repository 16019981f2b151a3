"""Probes against scikit-learn and brute force, and their selection on the validation split."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.preprocessing import StandardScaler

from tljax.features import probes
from tljax.features.probes import PROBES, Probe, fit_best, solve_ridge


def make_clusters(n, width, classes, seed, spread=1.5, scales=(0.1, 10)):
    """Return float32 features [n, width] around one center per class, and labels [n] in which every class occurs."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.resize(np.arange(classes), n))
    centers = np.random.default_rng(7).normal(size=(classes, width))
    features = (centers[labels] + spread * rng.normal(size=(n, width))) * np.geomspace(*scales, width) + 3
    return features.astype(np.float32), labels


@settings(deadline=None, max_examples=25)
@given(
    st.integers(2, 5), st.integers(2, 40), st.integers(10, 30), st.sampled_from([0.01, 1.0, 100.0]), st.integers(0, 9)
)
def test_solve_ridge_matches_scikit_learn(classes, width, n, alpha, seed):
    x, labels = make_clusters(n, width, classes, seed)
    x = StandardScaler().fit_transform(x.astype(np.float64))
    weights, mean, _ = solve_ridge(x, labels, classes, alpha)
    reference = Ridge(alpha).fit(x, np.eye(classes)[labels])
    np.testing.assert_allclose(weights, reference.coef_.T, atol=1e-8)
    np.testing.assert_allclose(mean, reference.intercept_, atol=1e-8)


@pytest.mark.parametrize("width", [8, 60])
def test_ridge_matches_ridge_classifier(width):
    x, labels = make_clusters(40, width, 4, seed=0)
    new, _ = make_clusters(200, width, 4, seed=1)
    scaler = StandardScaler().fit(x.astype(np.float64))
    reference = RidgeClassifier(alpha=10).fit(scaler.transform(x.astype(np.float64)), labels)
    predicted = probes.ridge(x, labels, 4, 10)(new).argmax(1)
    np.testing.assert_array_equal(predicted, reference.predict(scaler.transform(new.astype(np.float64))))


@pytest.mark.parametrize(("width", "alpha"), [(5, 0.1), (30, 0.1), (30, 100)])
def test_solve_ridge_held_out_scores_are_leave_one_out(width, alpha):
    x, labels = make_clusters(20, width, 3, seed=2)
    x = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    _, _, held_out = solve_ridge(x, labels, 3, alpha)
    for i in range(len(x)):
        rest = np.delete(np.arange(len(x)), i)
        reference = Ridge(alpha).fit(x[rest], np.eye(3)[labels[rest]])
        np.testing.assert_allclose(held_out[i], reference.predict(x[i : i + 1])[0], atol=1e-8)


def test_ridge_probabilities_are_calibrated():
    x, labels = make_clusters(60, 30, 4, seed=0)
    new, new_labels = make_clusters(400, 30, 4, seed=1)
    probabilities = probes.ridge(x, labels, 4, 10)(new)
    rows = np.arange(len(new_labels))
    loss = -np.log(probabilities[rows, new_labels]).mean()
    scores = np.log(probabilities)  # the scaled scores, up to a constant per row
    rescaled = [np.exp(f * scores) / np.exp(f * scores).sum(1, keepdims=True) for f in (0.5, 2)]
    assert all(loss < -np.log(p[rows, new_labels]).mean() for p in rescaled)


def test_logistic_matches_scikit_learn():
    x, labels = make_clusters(50, 8, 3, seed=0)
    new, _ = make_clusters(30, 8, 3, seed=1)
    scaler = StandardScaler().fit(x)
    reference = LogisticRegression(C=0.1, max_iter=1000).fit(scaler.transform(x), labels)
    probabilities = probes.logistic(x, labels, 3, 0.1)(new)
    np.testing.assert_allclose(probabilities, reference.predict_proba(scaler.transform(new)), atol=1e-6)


def test_logistic_hides_convergence_warning():
    x, labels = make_clusters(60, 4, 3, seed=0, spread=0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        probes.logistic(x, labels, 3, 1e4)


def test_knn_of_small_example():
    angles = np.deg2rad([0, 10, 90])
    x = np.stack([np.cos(angles), np.sin(angles)], 1) * [[1], [5], [9]]  # the distance does not depend on the norm
    new = np.deg2rad([4.0])
    distance = 1 - np.cos(new - angles)[:2]
    weights = (1 / distance) / (1 / distance).sum()
    expected = (2 * np.array([weights[0], weights[1], 0]) + 1 / 3) / 3
    probabilities = probes.knn(x, np.array([0, 1, 2]), 3, 2)(np.stack([np.cos(new), np.sin(new)], 1))
    np.testing.assert_allclose(probabilities[0], expected, rtol=1e-6)


@pytest.mark.parametrize("name", PROBES)
@settings(deadline=None, max_examples=8)
@given(st.integers(3, 5), st.integers(6, 25), st.integers(2, 30), st.integers(0, 99), st.data())
def test_probe_handles_missing_class(name, classes, n, width, seed, data):
    x, labels = make_clusters(n, width, classes, seed)
    missing = data.draw(st.integers(0, classes - 1))
    present = labels != missing
    x = x[present]
    labels = labels[present]
    x[:, 0] = 2.0  # a constant channel, with standard deviation 0
    probe = PROBES[name]
    values = [v for v in probe.values if not (probe.is_neighbor_count and v > len(labels))]
    predict = probe.fit(x, labels, classes, data.draw(st.sampled_from(values)))
    probabilities = predict(make_clusters(9, width, classes, 1)[0])
    assert probabilities.shape == (9, classes)
    assert (probabilities >= 0).all()
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert (probabilities.argmax(1) != missing).all()


def test_fit_best_order_of_criteria():
    """Accuracy decides, then the loss, then the stronger regularization."""
    labels = np.array([0, 0, 1, 1])
    probabilities = {
        5: [0.9, 0.9, 0.9, 0.1],  # three of four are correct
        4: [0.6, 0.6, 0.4, 0.4],
        3: [0.8, 0.8, 0.2, 0.2],
        2: [0.8, 0.8, 0.2, 0.2],
        1: [0.9, 0.9, 0.9, 0.9],
    }
    fitted_values = []

    def fit(features, labels, classes, value):
        fitted_values.append(value)
        first = np.array(probabilities[value])
        return lambda x: np.stack([first, 1 - first], 1)

    train = (np.zeros((5, 1)), np.zeros(5, int))
    valid = (np.zeros((4, 1)), labels)
    best = fit_best(Probe("k", (6, 5, 4, 3, 2, 1), fit, is_neighbor_count=True), train, valid, 2)
    assert fitted_values == [5, 4, 3, 2, 1]  # five images cannot have six neighbors
    assert (best.value, best.scores["accuracy"]) == (3, 1.0)
    np.testing.assert_array_equal(best.predict(valid[0])[:, 0], probabilities[3])


@pytest.mark.parametrize("name", PROBES)
def test_fit_best_value_is_inside_grid(name):
    train, valid, test = (make_clusters(n, 30, 4, seed, scales=(1, 1)) for n, seed in ((60, 0), (200, 1), (400, 2)))
    probe = PROBES[name]
    best = fit_best(probe, train, valid, 4)
    assert (best.predict(test[0]).argmax(1) == test[1]).mean() > 0.85
    assert best.value not in (probe.values[0], probe.values[-1])


def test_grids_start_with_strongest_regularization():
    x, labels = make_clusters(60, 30, 4, seed=0)
    scaled = StandardScaler().fit_transform(x.astype(np.float64))
    rows = np.arange(len(labels))
    norms = [np.linalg.norm(solve_ridge(scaled, labels, 4, alpha)[0]) for alpha in PROBES["ridge"].values]
    assert norms == sorted(norms)
    likelihoods = [probes.logistic(x, labels, 4, c)(x)[rows, labels].mean() for c in PROBES["logistic"].values]
    assert likelihoods == sorted(likelihoods)
    assert list(PROBES["knn"].values) == sorted(PROBES["knn"].values, reverse=True)
