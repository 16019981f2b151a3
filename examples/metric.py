"""Custom metrics: Cohen's kappa, top-2 accuracy and the Brier score of a classifier.

    python run.py --config=examples/metric.py

docs/extending.md describes the contract.
"""

import numpy as np
from sklearn.metrics import cohen_kappa_score

from tljax import config as schema
from tljax.tasks import Metric


def kappa(predictions, split):
    """Return the agreement with the labels beyond chance (Cohen 1960), at most 1; None if there is only one class."""
    predicted = predictions["probabilities"].argmax(-1)
    if len(np.unique([*predicted, *split.labels])) < 2:
        return None
    return cohen_kappa_score(split.labels, predicted)


def _top2(predictions, split):
    best = np.argsort(-predictions["probabilities"], axis=-1, kind="stable")[:, :2]
    return (best == split.labels[:, None]).any(-1).mean()


def _brier(predictions, split):
    one_hot = np.eye(predictions["probabilities"].shape[-1])[split.labels]
    return np.square(predictions["probabilities"] - one_hot).sum(-1).mean()


# A function becomes a metric under its name; a record also gives a title, and whether higher is better.
TOP2 = Metric("top2", _top2, title="top-2 accuracy")
BRIER = Metric("brier", _brier, higher_is_better=False, title="Brier score")


def get_config():
    """Train a small ResNet on the digits and compute the metrics beside those of classification."""
    c = schema.default()
    c.metrics = ("examples/metric.py:kappa", "examples/metric.py:TOP2", "examples/metric.py:BRIER")
    c.model.backbone = "resnet8"
    c.strategy.name = "scratch"
    c.train.epochs = 4
    return c
