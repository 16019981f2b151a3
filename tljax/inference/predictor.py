"""A config's model with what it is fed and where it runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tljax import models
from tljax.config import Config, ModelConfig
from tljax.data import Split
from tljax.distributed.mesh import DeviceMesh
from tljax.features.feature_cache import inference_batch_size
from tljax.inference.predict import predict_batches
from tljax.models import Model
from tljax.models import params as params_lib
from tljax.models.params import Variables
from tljax.tasks import Task, task_of
from tljax.train.step import make_predict
from tljax.weights import Preprocess


def build_model(config: Config, num_classes: int, preprocess: Preprocess) -> Model:
    """The config's model, abstract, for so many classes and an input as `preprocess` makes it."""
    model = config.model
    return models.create_model(
        model.backbone,
        num_classes=num_classes,
        head=model.head,
        out_stage=model.out_stage,
        image_size=preprocess.size,
        in_channels=preprocess.channels,
        options=model.options,
        auxiliary=model.aux_weight > 0,
        remat=model.remat,
        dtype=jax.numpy.dtype(config.train.compute_dtype),
        rngs=None,
        **head_options(model),
    )


def head_options(model: ModelConfig) -> dict[str, Any]:
    """The options of the head that a config asks for; those left out are as the head or the network has them."""
    asked = dict(model.head_options)
    if model.head == "classifier":
        asked |= {"pool": model.pool, "pool_size": model.pool_size, "hidden": model.hidden}
        asked |= {} if model.norm is None else {"norm": model.norm}
    return asked | ({"dropout": model.dropout} if model.dropout or model.head == "classifier" else {})


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
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
    mesh: DeviceMesh

    @classmethod
    def build(cls, config: Config, classes: Sequence[str], preprocess: Preprocess) -> Predictor:
        """Builds the config's model, abstract: its leaves are shapes; `preprocess.size` is the side of its input."""
        model = build_model(config, len(classes), preprocess)
        return cls(
            config, model, tuple(classes), preprocess, DeviceMesh(config.train.batch_size, config.train.sharding)
        )

    def variables(self) -> Variables:
        """The leaves of the model as it is now, shapes where they have no value yet."""
        return params_lib.variables(self.model)

    @property
    def task(self) -> Task:
        """What the model is for."""
        return task_of(self.config)

    def predict_fn(self) -> Callable:
        """The compiled forward pass, from leaves and a batch to the task's answers."""
        graphdef = params_lib.flatten_model(self.model).graphdef
        return make_predict(self.task, graphdef, self.preprocess, self.config.train.compute_dtype)

    def predict(self, variables: Variables, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The answers {name: [N, ...]}; `arrays` as `predict_rows` takes them."""
        size = inference_batch_size(self.preprocess.size, self.mesh)
        return predict_batches(self.predict_fn(), variables, arrays, size, self.mesh)

    def evaluate(
        self, variables: Variables, split: Split, cached_features: Mapping[str, np.ndarray] | None = None
    ) -> tuple[dict, dict[str, np.ndarray]]:
        """All metrics of a model on a split, and its answers; `maps` of first stages stand for the pictures."""
        side = self.preprocess.size
        answers = self.predict(variables, (cached_features or {"image": split.images}) | split.targets(side))
        scores = self.task.compute_metrics(answers, split, side)
        return scores | self.task.class_metrics(answers, split, side, self.classes), answers
