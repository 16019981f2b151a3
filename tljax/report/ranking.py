"""Which images a report shows first."""

from __future__ import annotations

import numpy as np


def worst_first(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return indices of the misclassified images, by ascending probability of the true class."""
    wrong = np.flatnonzero(probabilities.argmax(1) != labels)
    return wrong[np.argsort(probabilities[wrong, labels[wrong]], kind="stable")]
