"""A custom head and its task: multi-label classification, which digits occur in an image.

    python run.py --config=examples/multilabel.py

The head is class-specific residual attention (Zhu & Wu 2021, arXiv:2108.02456) in its limit of high temperature. The
data source derives the labels from the boxes of the built-in scenes. docs/extending.md describes the contracts.
"""

import dataclasses

import jax
import numpy as np
import optax
from sklearn.metrics import average_precision_score, log_loss

from tljax import config as schema
from tljax.data import RawDataset, Split
from tljax.data.sources.registry import load_source
from tljax.models.heads import Head
from tljax.models.layers import Conv
from tljax.tasks import Metric, Task


def load(config, task):
    """Return scenes of digits with labels int32 [N, 10], 1 for every digit that occurs."""
    scenes = load_source(dataclasses.replace(config, name="scenes"), "detection")

    def to_multi_hot(split):
        present = (split.labels[:, :, None] == np.arange(len(scenes.classes))).any(1)
        return Split(split.images, present.astype(np.int32))

    return RawDataset(*map(to_multi_hot, (scenes.train, scenes.test)), scenes.classes, to_multi_hot(scenes.valid))


def binary_cross_entropy(outputs, batch, references, hparams):
    """Return the mean sigmoid cross-entropy of logits [B, K] with `batch["label"]` [B, K]."""
    return optax.sigmoid_binary_cross_entropy(outputs["logits"], batch["label"]).mean()


def mean_average_precision(predictions, split):
    """Return the mean over classes; None if a class does not occur in the split."""
    return average_precision_score(split.labels, predictions["scores"]) if split.labels.any(0).all() else None


def loss(predictions, split, side):
    """Return the mean binary cross-entropy of a split; `side` of the input matters to tasks with locations only."""
    return {"loss": log_loss(split.labels.ravel(), predictions["scores"].ravel(), labels=[0, 1])}


MULTILABEL = Task(
    name="multilabel",
    heads=("classifier",),
    metrics=(Metric("map", mean_average_precision, title="mean average precision"),),
    train_metric_name="label_accuracy",
    label_loss=f"{__file__}:binary_cross_entropy",
    train_metric=lambda outputs, batch: ((outputs["logits"] > 0) == (batch["label"] > 0)).mean(-1),
    predict=lambda outputs, batch: {"scores": jax.nn.sigmoid(outputs["logits"])},
    compute_metrics=loss,
    spatial=False,
)


class ResidualAttention(Head):
    """Scores of every class at every location; the logit is their mean plus `strength` times their maximum."""

    task = MULTILABEL

    def __init__(self, shapes, num_classes, *, strength: float = 0.3, dtype=None, rngs):
        self.stage, (_, _, channels) = list(shapes.items())[-1]
        self.strength = strength
        self.score = Conv(channels, num_classes, 1, dtype=dtype, rngs=rngs)

    def __call__(self, features, train=False, rngs=None):
        """{stage: [B, H, W, C]} → logits [B, num_classes]."""
        scores = self.score(features[self.stage])
        return scores.mean((1, 2)) + self.strength * scores.max((1, 2))

    @property
    def main_features(self):
        """The last stage, whose features must not be averaged."""
        return {self.stage: None}


def get_config():
    """Train a small ResNet on scenes of one or two digits."""
    c = schema.default()
    c.data.name = "examples/multilabel.py:load"
    c.data.options = {
        "train": 800,
        "valid": 200,
        "test": 200,
        "side": 24,
        "scale": (0.5, 0.6),
        "texture": 0.2,
        "objects": (1, 2),
        "palette": "light",
    }
    c.model.backbone = "resnet8"
    c.model.head = "examples/multilabel.py:ResidualAttention"
    c.model.head_options = {"strength": 0.5}
    c.strategy.name = "scratch"
    c.optim.lr = 3e-3
    c.optim.schedule = "cosine"
    c.train.batch_size = 16
    c.train.epochs = 10
    return c
