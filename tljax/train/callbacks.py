"""Callbacks of the training loop, and the progress of a run as stored in checkpoints."""

from __future__ import annotations

import dataclasses
from typing import Protocol


class MetricWriter(Protocol):
    """Receives the metrics of each validation."""

    def write(self, row: dict) -> None:
        """Write the metrics of a validation."""

    def truncate(self, rows: int) -> None:
        """Keep only the first `rows` rows; the others are newer than the checkpoint that training resumes from."""


class ProgressReporter(Protocol):
    """Receives the progress between validations."""

    def start_phase(self, name: str, steps: int, done: int) -> None:
        """Report the start of a phase of `steps` steps, of which `done` are already done."""

    def start_task(self, name: str, images: int) -> None:
        """Report the start of a task other than training steps, over `images` images."""

    def advance_task(self, images: int) -> None:
        """Report that `images` more images of the task are done."""

    def advance_steps(self, count: int, images: int, loss: float, metric: float) -> None:
        """Report `count` finished steps over `images` images, with the latest loss and the mean training metric."""

    def print_note(self, text: str) -> None:
        """Print a line."""


def empty_sums() -> dict:
    """Return the empty sums of training metrics."""
    return {"loss": 0.0, "correct": 0.0, "steps": 0, "terms": []}


@dataclasses.dataclass
class TrainProgress:
    """Progress of a run, as plain values that a checkpoint stores as JSON.

    Attributes:
      phase: index of the current phase.
      step: number of steps done in the current phase.
      total: number of steps done in the run.
      epoch: number of epochs done in earlier phases.
      data: position of the batch iterator.
      sums: sums of loss, loss terms and training metric, and number of steps, since the last validation.
      best: metrics, step, epoch and phase of the best validation of the run.
      phase_best: the same for the current phase; early stopping counts from it.
      frozen: hash of each frozen variable at the start of the phase; of sliced parameters, hash of the other channels.
      channels: trainable output channels by layer path, if single channels train.
      phases: record of each finished phase.
      rows: number of rows written to metrics.jsonl.
      seconds: training time, over all sessions.
      phase_seconds: `seconds` at the start of the phase.
    """

    phase: int = 0
    step: int = 0
    total: int = 0
    epoch: float = 0.0
    data: dict | None = None
    sums: dict = dataclasses.field(default_factory=empty_sums)
    best: dict | None = None
    phase_best: dict | None = None
    frozen: dict | None = None
    channels: dict | None = None
    phases: list = dataclasses.field(default_factory=list)
    rows: int = 0
    seconds: float = 0.0
    phase_seconds: float = 0.0
