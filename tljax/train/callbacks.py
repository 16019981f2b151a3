"""What the host knows of a run, and to whom it tells it."""

from __future__ import annotations

import dataclasses
from typing import Protocol


class MetricWriter(Protocol):
    """Where validations of a run are told."""

    def write(self, row: dict) -> None:
        """A validation is through."""

    def truncate(self, rows: int) -> None:
        """Only so many rows count; the others came after the checkpoint."""


class ProgressReporter(Protocol):
    """Where the loop tells what happens between validations."""

    def start_phase(self, name: str, steps: int, done: int) -> None:
        """A phase begins or goes on."""

    def start_task(self, what: str, pictures: int) -> None:
        """Something other than steps begins, over so many pictures."""

    def advance_task(self, pictures: int) -> None:
        """So many of them are done."""

    def steps(self, count: int, pictures: int, loss: float, seen: float) -> None:
        """The metrics of so many steps have arrived, and of so many pictures."""

    def note(self, text: str) -> None:
        """Something that one should know."""


def empty_sums() -> dict:
    """Nothing collected since the last validation."""
    return {"loss": 0.0, "correct": 0.0, "steps": 0, "terms": []}


@dataclasses.dataclass
class TrainProgress:
    """The host's side of a run; plain values, so that it is JSON in a checkpoint.

    Attributes:
      phase: index of the current phase.
      step: steps done in it.
      total: steps done in the run.
      epoch: epochs done in the phases before.
      data: position of the batch iterator.
      sums: of loss, objectives, what the task sees in training, and steps since the last validation.
      best: score, loss, step, epoch and phase of the best validation so far.
      phase_best: the same within the phase; early stopping counts from it.
      frozen: digest of each frozen leaf at the start of the phase; of a layer with learning neurons, of the others.
      neurons: output channels that learn, by the layer's path, where single neurons do.
      phases: a record of each finished phase.
      rows: lines of metrics.jsonl that count.
      seconds: spent so far, over all sittings; `phase_seconds` at the start of the phase.
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
