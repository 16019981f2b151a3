"""Where the training loop reports to, and the progress of a run that its checkpoints hold."""

from __future__ import annotations

import dataclasses
from typing import Protocol


class MetricWriter(Protocol):
    """Receives a row of metrics per validation."""

    def write(self, row: dict) -> None:
        """Write the row of a validation."""

    def truncate(self, rows: int) -> None:
        """Keep only the first rows: the others are newer than the checkpoint that training resumes from."""


class ProgressReporter(Protocol):
    """Receives what happens between validations."""

    def start_phase(self, name: str, steps: int, done: int) -> None:
        """Report a phase of so many steps, of which some may be done."""

    def start_task(self, name: str, images: int) -> None:
        """Report work other than training steps, over so many images."""

    def advance_task(self, images: int) -> None:
        """Report that so many more images are done."""

    def advance_steps(self, count: int, images: int, loss: float, metric: float) -> None:
        """Report finished steps over so many images, with the last loss and the training metric of an image."""

    def print_note(self, text: str) -> None:
        """Print a line."""


def empty_sums() -> dict:
    """Return the sums of training metrics after a validation."""
    return {"loss": 0.0, "correct": 0.0, "steps": 0, "terms": []}


@dataclasses.dataclass
class TrainProgress:
    """How far a run is, as plain values that a checkpoint stores as JSON.

    Attributes:
      phase: index of the current phase.
      step: steps done in it.
      total: steps done in the run.
      epoch: epochs done in earlier phases.
      data: position of the batch iterator.
      sums: of loss, loss terms, training metric and steps since the last validation.
      best: metrics, step, epoch and phase of the best validation of the run.
      phase_best: the same within the phase; early stopping counts from it.
      frozen: hash of each frozen variable at the start of the phase; with sliced parameters, of their other channels.
      channels: output channels that train, by the layer's path, where single channels do.
      phases: a record of each finished phase.
      rows: lines of metrics.jsonl up to this point.
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
