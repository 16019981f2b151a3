"""What a task is: what its training steps show, what a network answers, and what the answers are judged by."""

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
    """Images of the user's with a network's outputs for them.

    Attributes:
      files: of the images, by names that differ.
      images: uint8 [H, W, C], each of its own size.
      classes: names of the network's classes.
      side: of the network's input, in pixels.
      outputs: {name: [N, ...]}, of the task's `answers`.
      folder: for files of the predictions.
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
      name: of the task.
      heads: names of the heads whose outputs it reads, in `tljax.models.heads.HEADS`.
      metrics: key and name in reports of every scalar of `scores` but the loss, the first of which chooses the best
        model; higher is better.
      progress: the key under which training steps show `seen`.
      labels: the objective that "cross_entropy", the labels' part of a strategy, stands for.
      seen: (outputs, batch) → [B], how right a network is about each picture of a training batch, from 0 to 1; inside
        the compiled step.
      answers: (outputs, batch) → {name: [B, ...]}, all that `scores`, `details` and pictures need of each picture;
        inside the compiled forward pass. Where `batch` has labels, what compares with them too.
      scores: (rows, split, side) → {key: number or None}, the metrics and `loss` of a split, from the answers to its
        pictures [N, ...] by a network whose input has so many pixels a side.
      details: (rows, split, side, classes) → further entries of the result, `per_class` among them: a list of rows,
        each with `class`, the name of its class.
      tuned: (rows, split, validation rows, validation split, classes) → further entries of the result, which depend on
        a choice made on validation; None: nothing is chosen.
      located: whether what it tells lies somewhere on a picture, and moves with it.
      figure_data: (rows, split, side, count) → {name: array}, all that `figures` needs of a split's images and answers,
        at most `count` images among it.
      figures: (figure data, metrics of the test split, classes, folder) → {name in the report: file}; draws them.
      write_predictions: predictions → a row of predictions.jsonl and a line of text for each image; writes what goes
        into files of its own.
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
