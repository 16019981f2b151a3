"""Probes: scikit-learn's numbers, the closed forms by brute force, and the choice on validation."""

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


def clouds(n, width, classes, seed, spread=1.5, scales=(0.1, 10)):
    """Float32 features around a centre per class, at scales of their own, and labels of which each class has some."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.resize(np.arange(classes), n))
    centres = np.random.default_rng(7).normal(size=(classes, width))
    features = (centres[labels] + spread * rng.normal(size=(n, width))) * np.geomspace(*scales, width) + 3
    return features.astype(np.float32), labels


@settings(deadline=None, max_examples=25)
@given(
    st.integers(2, 5), st.integers(2, 40), st.integers(10, 30), st.sampled_from([0.01, 1.0, 100.0]), st.integers(0, 9)
)
def test_ridge_is_scikit_learns_over_features_and_over_pictures(classes, width, n, alpha, seed):
    x, labels = clouds(n, width, classes, seed)
    x = StandardScaler().fit_transform(x.astype(np.float64))
    weights, mean, _ = solve_ridge(x, labels, classes, alpha)
    theirs = Ridge(alpha).fit(x, np.eye(classes)[labels])
    np.testing.assert_allclose(weights, theirs.coef_.T, atol=1e-8)
    np.testing.assert_allclose(mean, theirs.intercept_, atol=1e-8)


@pytest.mark.parametrize("width", [8, 60])
def test_ridge_predicts_what_scikit_learns_ridge_classifier_does(width):
    x, labels = clouds(40, width, 4, seed=0)
    new, _ = clouds(200, width, 4, seed=1)
    scaler = StandardScaler().fit(x.astype(np.float64))
    theirs = RidgeClassifier(alpha=10).fit(scaler.transform(x.astype(np.float64)), labels)
    ours = probes.ridge(x, labels, 4, 10)(new)
    np.testing.assert_array_equal(ours.argmax(1), theirs.predict(scaler.transform(new.astype(np.float64))))


@pytest.mark.parametrize(("width", "alpha"), [(5, 0.1), (30, 0.1), (30, 100)])
def test_the_held_out_scores_of_ridge_are_those_of_leaving_each_picture_out(width, alpha):
    x, labels = clouds(20, width, 3, seed=2)
    x = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    _, _, held_out = solve_ridge(x, labels, 3, alpha)
    for i in range(len(x)):
        rest = np.delete(np.arange(len(x)), i)
        theirs = Ridge(alpha).fit(x[rest], np.eye(3)[labels[rest]])
        np.testing.assert_allclose(held_out[i], theirs.predict(x[i : i + 1])[0], atol=1e-8)


def test_the_probabilities_of_ridge_fit_new_pictures_better_than_raw_scores_do():
    x, labels = clouds(60, 30, 4, seed=0)
    new, truth = clouds(400, 30, 4, seed=1)
    ours = probes.ridge(x, labels, 4, 10)(new)
    rows = np.arange(len(truth))
    likelihood = -np.log(ours[rows, truth]).mean()
    scores = np.log(ours)  # but for a constant per row, the factor times the scores
    factors = [np.exp(f * scores) / np.exp(f * scores).sum(1, keepdims=True) for f in (0.5, 2)]
    assert all(likelihood < -np.log(p[rows, truth]).mean() for p in factors)


def test_logistic_is_scikit_learns_on_standardised_features():
    x, labels = clouds(50, 8, 3, seed=0)
    new, _ = clouds(30, 8, 3, seed=1)
    scaler = StandardScaler().fit(x)
    theirs = LogisticRegression(C=0.1, max_iter=1000).fit(scaler.transform(x), labels)
    ours = probes.logistic(x, labels, 3, 0.1)(new)
    np.testing.assert_allclose(ours, theirs.predict_proba(scaler.transform(new)), atol=1e-6)


def test_a_probe_that_does_not_converge_is_no_warning():
    x, labels = clouds(60, 4, 3, seed=0, spread=0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        probes.logistic(x, labels, 3, 1e4)


def test_knn_by_hand():
    angles = np.deg2rad([0, 10, 90])
    x = np.stack([np.cos(angles), np.sin(angles)], 1) * [[1], [5], [9]]  # length says nothing
    new = np.deg2rad([4.0])
    distance = 1 - np.cos(new - angles)[:2]
    share = (1 / distance) / (1 / distance).sum()
    expected = (2 * np.array([share[0], share[1], 0]) + 1 / 3) / 3
    ours = probes.knn(x, np.array([0, 1, 2]), 3, 2)(np.stack([np.cos(new), np.sin(new)], 1))
    np.testing.assert_allclose(ours[0], expected, rtol=1e-6)


@pytest.mark.parametrize("name", PROBES)
@settings(deadline=None, max_examples=8)
@given(st.integers(3, 5), st.integers(6, 25), st.integers(2, 30), st.integers(0, 99), st.data())
def test_every_class_has_its_column(name, classes, n, width, seed, data):
    x, labels = clouds(n, width, classes, seed)
    missing = data.draw(st.integers(0, classes - 1))
    x, labels = x[labels != missing], labels[labels != missing]
    x[:, 0] = 2.0  # a dead channel, which has no deviation to divide by
    probe = PROBES[name]
    values = [v for v in probe.values if not (probe.neighbours and v > len(labels))]
    probabilities = probe.fit(x, labels, classes, data.draw(st.sampled_from(values)))(clouds(9, width, classes, 1)[0])
    assert probabilities.shape == (9, classes)
    assert (probabilities >= 0).all()
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert (probabilities.argmax(1) != missing).all()


def test_the_choice_is_accuracy_then_loss_then_the_stronger_regularisation():
    labels = np.array([0, 0, 1, 1])
    tables = {
        5: [0.9, 0.9, 0.9, 0.1],  # three of four
        4: [0.6, 0.6, 0.4, 0.4],
        3: [0.8, 0.8, 0.2, 0.2],
        2: [0.8, 0.8, 0.2, 0.2],
        1: [0.9, 0.9, 0.9, 0.9],
    }
    asked = []

    def fit(features, labels, classes, value):
        asked.append(value)
        first = np.array(tables[value])
        return lambda x: np.stack([first, 1 - first], 1)

    rows = (np.zeros((4, 1)), labels)
    chosen = fit_best(
        Probe("k", (6, 5, 4, 3, 2, 1), fit, neighbours=True), (np.zeros((5, 1)), np.zeros(5, int)), rows, 2
    )
    assert asked == [5, 4, 3, 2, 1]  # there are no six neighbours among five pictures
    assert (chosen.value, chosen.scores["accuracy"]) == (3, 1.0)
    np.testing.assert_array_equal(chosen.predict(rows[0])[:, 0], tables[3])


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_finds_what_is_there_and_its_grid_has_an_inside(name):
    train, valid, test = (clouds(n, 30, 4, seed, scales=(1, 1)) for n, seed in ((60, 0), (200, 1), (400, 2)))
    probe = PROBES[name]
    chosen = fit_best(probe, train, valid, 4)
    assert (chosen.predict(test[0]).argmax(1) == test[1]).mean() > 0.85
    assert chosen.value not in (probe.values[0], probe.values[-1])


def test_grids_begin_with_the_strongest_regularisation():
    x, labels = clouds(60, 30, 4, seed=0)
    scaled, rows = StandardScaler().fit_transform(x.astype(np.float64)), np.arange(len(labels))
    norms = [np.linalg.norm(solve_ridge(scaled, labels, 4, alpha)[0]) for alpha in PROBES["ridge"].values]
    assert norms == sorted(norms)
    likelihoods = [probes.logistic(x, labels, 4, c)(x)[rows, labels].mean() for c in PROBES["logistic"].values]
    assert likelihoods == sorted(likelihoods)
    assert list(PROBES["knn"].values) == sorted(PROBES["knn"].values, reverse=True)
