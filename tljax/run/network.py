"""A config's model with what it is fed and where it runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tljax import models
from tljax.config import Config, ModelConfig
from tljax.models import Model
from tljax.models import state as leaves_of
from tljax.models.state import Leaves
from tljax.tasks import classification
from tljax.train.evaluate import predict_rows
from tljax.train.keep import rows_at_once
from tljax.train.sharding import Mesh
from tljax.train.step import make_predict
from tljax.weights import Preprocess


def build_model(config: Config, num_classes: int, preprocess: Preprocess) -> Model:
    """The config's model, abstract, for so many classes and an input as `preprocess` makes it."""
    model = config.model
    return models.build(
        model.backbone,
        num_classes=num_classes,
        head=model.head,
        tap=model.tap,
        image_size=preprocess.size,
        in_channels=preprocess.channels,
        options=model.options,
        auxiliary=model.aux_weight > 0,
        remat=model.remat,
        dtype=jax.numpy.dtype(config.train.precision),
        rngs=None,
        **head_options(model),
    )


def head_options(model: ModelConfig) -> dict[str, Any]:
    """The options of the head that a config asks for."""
    asked = {"pool": model.pool, "pool_size": model.pool_size, "hidden": model.hidden, "dropout": model.dropout}
    return asked if model.norm is None else asked | {"norm": model.norm}


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A model with what it is fed and where it runs; all that is needed to predict but the values of its leaves.

    Attributes:
      config: of the run.
      model: of the config.
      classes: names of the outputs.
      preprocess: of the weights, at the run's own input size.
      mesh: the devices.
    """

    config: Config
    model: Model
    classes: tuple[str, ...]
    preprocess: Preprocess
    mesh: Mesh

    @classmethod
    def build(cls, config: Config, classes: Sequence[str], preprocess: Preprocess) -> Network:
        """Builds the config's model, abstract: its leaves are shapes; `preprocess.size` is the side of its input."""
        model = build_model(config, len(classes), preprocess)
        return cls(config, model, tuple(classes), preprocess, Mesh(config.train.batch_size, config.train.shard))

    def leaves(self) -> Leaves:
        """The leaves of the model as it is now, shapes where they have no value yet."""
        return leaves_of.values(self.model)

    def predictor(self) -> Callable:
        """The compiled forward pass, from leaves and a batch to probabilities."""
        graphdef = leaves_of.split(self.model).graphdef
        return make_predict(graphdef, self.preprocess, self.config.train.precision)

    def predict(self, leaves: Leaves, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Probabilities [N, classes]; `arrays` as `predict_rows` takes them."""
        size = rows_at_once(self.preprocess.size, self.mesh)
        return predict_rows(self.predictor(), leaves, arrays, (len(self.classes),), size, self.mesh)

    def judge(self, leaves: Leaves, labels: np.ndarray, arrays: Mapping[str, np.ndarray]) -> tuple[dict, np.ndarray]:
        """All metrics of a model on pictures with labels [N], and its probabilities [N, classes]."""
        probabilities = self.predict(leaves, arrays)
        scores = classification.scores(labels, probabilities)
        return scores | classification.details(labels, probabilities, self.classes), probabilities
