"""The `Task` type: predictions, metrics and figures of a kind of problem."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tljax.data import Split
from tljax.errors import UserError

Predictions = Mapping[str, np.ndarray]
Arrays = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class PredictionSet:
    """Images given by the user, with the predictions for them.

    Attributes:
      files: {unique name: path} of the images.
      images: uint8 [H, W, C], each at its original size if the targets of the task have locations, else as stored.
      classes: class names of the network.
      side: height and width of the network's input, in pixels.
      predictions: {name: [N, ...]}, from `Task.predict`.
      folder: where prediction files are written.
    """

    files: Mapping[str, Path]
    images: Sequence[np.ndarray]
    classes: Sequence[str]
    side: int
    predictions: Predictions
    folder: Path


@dataclasses.dataclass(frozen=True)
class Metric:
    """A scalar that a split is evaluated by.

    Attributes:
      name: key in result.json and metrics.jsonl.
      compute: (predictions, split) → number, or None where it is undefined. `predictions` are {name: [N, ...]}, from
        `Task.predict`. None: `Task.compute_metrics` returns it.
      higher_is_better: for the report.
      title: name in the report; None: `name`, with spaces instead of underscores.
    """

    name: str
    compute: Callable[[Predictions, Split], float | None] | None = None
    higher_is_better: bool = True
    title: str | None = None

    @property
    def label(self) -> str:
        """Name in the report."""
        return self.title or self.name.replace("_", " ")


def _no_entries(*_: Any) -> dict[str, Any]:
    return {}


def write_arrays(prediction_set: PredictionSet) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the predictions of each image as a row of lists, and as text: the default of `Task.write_predictions`."""
    for i in range(len(prediction_set.images)):
        row = {name: np.asarray(values[i]).tolist() for name, values in prediction_set.predictions.items()}
        yield row, "  ".join(f"{name} {np.round(value, 3).tolist()}" for name, value in row.items())


@dataclasses.dataclass(frozen=True)
class Task:
    """The parts in which classification, segmentation and detection differ.

    Attributes:
      name: key in `tljax.tasks.TASKS`, or the name of a custom task.
      heads: supported heads, keys of `tljax.models.heads.HEADS`.
      metrics: of the task, except the loss. The first one selects the best model, and higher must be better.
      train_metric_name: key under which training steps log `train_metric`.
      label_loss: the loss that replaces "cross_entropy" in a strategy; of a custom task also `FILE.py:NAME`.
      train_metric: (outputs, batch) → [B], a score from 0 to 1 for each image of a training batch. Runs in the compiled
        step.
      predict: (outputs, batch) → {name: [B, ...]}, everything that the metrics and figures need of each image. If
        `batch` has labels, it includes comparisons with them. Runs in the compiled forward pass.
      compute_metrics: (predictions, split, side) → {name: number or None}, the `loss` of a split and all metrics that
        have no function of their own.
        `predictions` are {name: [N, ...]}; `side` is the height and width of the network's input in pixels.
      class_metrics: (predictions, split, side, classes) → more entries of result.json, among them optionally
        `per_class`: a list of rows, each with the name of its `class`.
      figure_data: (predictions, split, side, count) → {name: array}, everything that `figures` needs, with at most
        `count` images.
      figures: (figure data, metrics of the test split, classes, folder) → {name in the report: file}; draws the files.
      write_predictions: PredictionSet → for each image, a row of predictions.jsonl and a line of text. May also write
        files. Called for some images after others.
      merge_predictions: (rows of predictions.jsonl, classes, folder) → None; writes files about all images together.
        None: there are no such files.
      tune_on_validation: (predictions, split, validation predictions, validation split, classes) → more entries of
        result.json that depend on a choice made on the validation split. None: nothing is tuned.
      spatial: whether targets have locations in the image, and so must be transformed with it.
      source_task: the built-in task whose labels the data sources give; None: `name`.
    """

    name: str
    heads: tuple[str, ...]
    metrics: tuple[Metric, ...]
    train_metric_name: str
    label_loss: str
    train_metric: Callable[[Mapping[str, Any], Arrays], jax.Array]
    predict: Callable[[Mapping[str, Any], Arrays], dict[str, jax.Array]]
    compute_metrics: Callable[[Predictions, Split, int], dict[str, float | None]]
    class_metrics: Callable[[Predictions, Split, int, tuple[str, ...]], dict[str, Any]] = _no_entries
    figure_data: Callable[[Predictions, Split, int, int], dict[str, np.ndarray]] = _no_entries
    figures: Callable[[Predictions, Mapping[str, Any], Sequence[str], Path], dict[str, Path]] = _no_entries
    write_predictions: Callable[[PredictionSet], Iterator[tuple[dict[str, Any], str]]] = write_arrays
    merge_predictions: Callable[[Iterable[dict[str, Any]], Sequence[str], Path], None] | None = None
    tune_on_validation: Callable[[Predictions, Split, Predictions, Split, tuple[str, ...]], dict[str, Any]] | None = (
        None
    )
    spatial: bool = True
    source_task: str | None = None

    def __post_init__(self):
        if not self.metrics or not all(isinstance(metric, Metric) for metric in self.metrics):
            raise UserError(f'Task "{self.name}": metrics must be one or more tljax.tasks.Metric.')
        if not self.metrics[0].higher_is_better:
            raise UserError(
                f'Task "{self.name}": the first metric selects the best model, so higher must be better; '
                f"{self.metrics[0].name} is not."
            )

    @property
    def labels(self) -> str:
        """The task whose labels the data sources give."""
        return self.source_task or self.name


def compute_metrics(
    task: Task, metrics: Sequence[Metric], predictions: Predictions, split: Split, side: int
) -> dict[str, float | None]:
    """Return the metrics of a split, and its loss.

    Args:
      task: whose predictions they are.
      metrics: of the task and of the config, from `metrics_of`.
      predictions: {name: [N, ...]}, from `Task.predict`.
      split: with the labels.
      side: height and width of the network's input in pixels.

    Raises:
      UserError: a custom task or metric does not return what it must.
    """
    values = task.compute_metrics(predictions, split, side)
    if not isinstance(values, Mapping):
        raise UserError(
            f'compute_metrics of the task "{task.name}" must return a dict of numbers, got {type(values).__name__}.'
        )
    values = {name: value if isinstance(value, float) else _as_number(name, value) for name, value in values.items()}
    for metric in metrics:
        if metric.compute is not None:
            values[metric.name] = _as_number(metric.name, metric.compute(predictions, split))
    if missing := [name for name in ("loss", *(metric.name for metric in metrics)) if name not in values]:
        raise UserError(f'compute_metrics of the task "{task.name}" must also return {", ".join(missing)}.')
    return values


def _as_number(name: str, value: Any) -> float | None:
    """Return a metric as a float; None where it is undefined or not finite."""
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"The metric {name} must return a number or None, got {type(value).__name__}.") from error
    return number if math.isfinite(number) else None
