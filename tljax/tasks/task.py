"""The `Task` type: predictions, metrics and figures of a kind of problem."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tljax.data import Split

Predictions = Mapping[str, np.ndarray]
Arrays = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class PredictionSet:
    """Images given by the user, with the predictions for them.

    Attributes:
      files: {unique name: path} of the images.
      images: uint8 [H, W, C], each at its original size.
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
class Task:
    """The parts in which classification, segmentation and detection differ.

    Attributes:
      name: key in `tljax.tasks.TASKS`.
      heads: supported heads, keys of `tljax.models.heads.HEADS`.
      metrics: (key, display name) of each scalar that `compute_metrics` returns, except the loss. Higher is better; the
        first one selects the best model.
      train_metric_name: key under which training steps log `train_metric`.
      label_loss: the loss that replaces "cross_entropy" in a strategy.
      train_metric: (outputs, batch) → [B], a score from 0 to 1 for each image of a training batch. Runs in the compiled
        step.
      predict: (outputs, batch) → {name: [B, ...]}, everything that the metrics and figures need of each image. If
        `batch` has labels, it includes comparisons with them. Runs in the compiled forward pass.
      compute_metrics: (predictions, split, side) → {key: number or None}, the metrics and `loss` of a split.
        `predictions` are {name: [N, ...]}; `side` is the height and width of the network's input in pixels.
      class_metrics: (predictions, split, side, classes) → more entries of result.json, among them `per_class`: a list
        of rows, each with the name of its `class`.
      figure_data: (predictions, split, side, count) → {name: array}, everything that `figures` needs, with at most
        `count` images.
      figures: (figure data, metrics of the test split, classes, folder) → {name in the report: file}; draws the files.
      write_predictions: PredictionSet → for each image, a row of predictions.jsonl and a line of text. May also write
        files.
      tune_on_validation: (predictions, split, validation predictions, validation split, classes) → more entries of
        result.json that depend on a choice made on the validation split. None: nothing is tuned.
      spatial: whether targets have locations in the image, and so must be transformed with it.
    """

    name: str
    heads: tuple[str, ...]
    metrics: tuple[tuple[str, str], ...]
    train_metric_name: str
    label_loss: str
    train_metric: Callable[[Mapping[str, Any], Arrays], jax.Array]
    predict: Callable[[Mapping[str, Any], Arrays], dict[str, jax.Array]]
    compute_metrics: Callable[[Predictions, Split, int], dict[str, float | None]]
    class_metrics: Callable[[Predictions, Split, int, tuple[str, ...]], dict[str, Any]]
    figure_data: Callable[[Predictions, Split, int, int], dict[str, np.ndarray]]
    figures: Callable[[Predictions, Mapping[str, Any], Sequence[str], Path], dict[str, Path]]
    write_predictions: Callable[[PredictionSet], Iterator[tuple[dict[str, Any], str]]]
    tune_on_validation: Callable[[Predictions, Split, Predictions, Split, tuple[str, ...]], dict[str, Any]] | None = (
        None
    )
    spatial: bool = True
