"""What a task is: what its training steps show, what a network answers, and what the answers are judged by."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from tljax.data import Split

Rows = Mapping[str, np.ndarray]
Arrays = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Task:
    """The parts in which classification, segmentation and detection differ.

    Attributes:
      name: of the task.
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
    """

    name: str
    metrics: tuple[tuple[str, str], ...]
    progress: str
    labels: str
    seen: Callable[[Mapping[str, Any], Arrays], jax.Array]
    answers: Callable[[Mapping[str, Any], Arrays], dict[str, jax.Array]]
    scores: Callable[[Rows, Split, int], dict[str, float | None]]
    details: Callable[[Rows, Split, int, tuple[str, ...]], dict[str, Any]]
    tuned: Callable[[Rows, Split, Rows, Split, tuple[str, ...]], dict[str, Any]] | None = None
    located: bool = True
