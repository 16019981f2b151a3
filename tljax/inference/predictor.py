"""A config's model with its preprocessing and devices: everything that predictions need but the variables."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from tljax import models
from tljax.config import Config, ModelConfig
from tljax.data import Split
from tljax.data.dataset import Images
from tljax.distributed.mesh import DeviceMesh
from tljax.features.extract import inference_batch_size
from tljax.features.frozen_network import FROZEN_STAGES, group_outputs
from tljax.inference.predict import predict_batches
from tljax.models import Model
from tljax.models import params as params_lib
from tljax.models.params import FlatModel, Variables
from tljax.ops.convolution import inference_options
from tljax.tasks import Metric, Task, compute_metrics, metrics_of, task_of
from tljax.weights import Preprocess, make_preprocess


def build_model(config: Config, num_classes: int, preprocess: Preprocess) -> Model:
    """Return the config's model, abstract, with `num_classes` outputs and inputs as `preprocess` makes them."""
    model = config.model
    return models.create_model(
        model.backbone,
        num_classes=num_classes,
        head=model.head,
        out_stage=model.out_stage,
        image_size=preprocess.side,
        in_channels=preprocess.channels,
        options=model.options,
        auxiliary=model.aux_weight > 0,
        remat=model.remat,
        dtype=jax.numpy.dtype(config.train.compute_dtype),
        rngs=None,
        **head_options(model),
    )


def head_options(model: ModelConfig) -> dict[str, Any]:
    """Return the head options that a config sets; the others keep the default of the head or the network."""
    options = dict(model.head_options)
    if model.head == "classifier":
        options |= {"pool": model.pool, "pool_size": model.pool_size, "hidden": model.hidden}
        options |= {} if model.norm is None else {"norm": model.norm}
    return options | ({"dropout": model.dropout} if model.dropout or model.head == "classifier" else {})


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
    """A model with its preprocessing and devices: everything that predictions need but the variables.

    Attributes:
      config: of the run.
      model: of the config, abstract.
      flat: the same as graph definition and flat dicts of shapes.
      classes: names of the outputs.
      preprocess: of the pretrained weights, at the run's input size.
      mesh: the devices.
    """

    config: Config
    model: Model
    flat: FlatModel
    classes: tuple[str, ...]
    preprocess: Preprocess
    mesh: DeviceMesh

    @classmethod
    def of_model(cls, config: Config, model: Model, classes: Sequence[str], preprocess: Preprocess) -> Predictor:
        """Return the predictor of an abstract model; `preprocess.size` is the side of its input in pixels."""
        mesh = DeviceMesh(config.train.batch_size, config.train.sharding)
        return cls(config, model, params_lib.flatten_model(model), tuple(classes), preprocess, mesh)

    @classmethod
    def build(cls, config: Config, classes: Sequence[str], preprocess: Preprocess) -> Predictor:
        """Build the config's model and return its predictor."""
        return cls.of_model(config, build_model(config, len(classes), preprocess), classes, preprocess)

    @property
    def task(self) -> Task:
        """The task of the config."""
        return task_of(self.config)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics of the task and of the config."""
        return metrics_of(self.config)

    def predict_fn(self) -> Callable:
        """Return the compiled forward pass, (variables, batch) → predictions."""
        return make_predict(self.task, self.flat.graphdef, self.preprocess, self.config.train.compute_dtype)

    def predict(self, variables: Variables, arrays: Mapping[str, Images]) -> dict[str, np.ndarray]:
        """Return the predictions {name: [N, ...]}; `arrays` are as `predict_batches` takes them."""
        size = inference_batch_size(self.preprocess.side, self.mesh)
        return predict_batches(self.predict_fn(), variables, arrays, size, self.mesh)

    def evaluate(
        self, variables: Variables, split: Split, cached_features: Mapping[str, np.ndarray] | None = None
    ) -> tuple[dict, dict[str, np.ndarray]]:
        """Return all metrics on a split, and the predictions; `cached_features` of frozen stages replace the images."""
        side = self.preprocess.side
        arrays = {**(cached_features or {"image": split.images}), **split.targets(side)}
        predictions = self.predict(variables, arrays)
        metrics = compute_metrics(self.task, self.metrics, predictions, split, side)
        return metrics | self.task.class_metrics(predictions, split, side, self.classes), predictions


@functools.lru_cache(maxsize=64)
def make_predict(task: Task, graphdef: nnx.GraphDef, preprocess: Preprocess, dtype: str) -> Callable:
    """Compile `predict(variables, batch) → {name: [B, ...]}`, the task's predictions in inference mode.

    `batch` is uint8 `image` [B, H, W, C], or cached features of the frozen stages; with the task's targets, predictions
    include what is compared with them.
    """
    prepare = make_preprocess(preprocess, preprocess.size, dtype)

    def predict(variables: Variables, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        cached = group_outputs({name: value for name, value in batch.items() if "/" in name})
        features = cached.get(FROZEN_STAGES, {"maps": {}})["maps"]
        images = None if features else prepare(batch["image"])
        model = params_lib.merge(graphdef, variables)
        return task.predict(model.forward_all(images, cached_features=features), batch)

    return jax.jit(predict, compiler_options=inference_options())
