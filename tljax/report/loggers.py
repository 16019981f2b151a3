"""Logging during a run: metrics.jsonl, TensorBoard events, one console line per validation, and a progress bar."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tljax.tasks import Task


class MetricLogger:
    """Context manager that logs the validation rounds of one run to a file, TensorBoard and the console.

    Args:
      workdir: folder of metrics.jsonl and tensorboard/.
      console: receives the lines.
      task: determines which metrics the lines show.
      tensorboard: whether to write TensorBoard events.
      lines: whether to print one line per validation round.
    """

    def __init__(self, workdir: Path, console: Console, task: Task, *, tensorboard: bool = True, lines: bool = True):
        self._train_metric = task.train_metric_name
        self._valid_metric = task.metrics[0].name
        self._path = workdir / "metrics.jsonl"
        self._console = console
        self._lines = lines
        self._events = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._events = SummaryWriter(str(workdir / "tensorboard"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._events is not None:
            self._events.close()

    def write(self, row: dict) -> None:
        """Append one validation round to metrics.jsonl and to the TensorBoard events."""
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self._events is not None:
            for split in ("train", "valid"):
                for key, value in row[split].items():
                    if value is not None:
                        self._events.add_scalar(f"{split}/{key}", value, row["step"])
            self._events.add_scalar("lr", row["lr"], row["step"])
            self._events.flush()
        if self._lines:
            train = row["train"]
            valid = row["valid"]
            self._console.print(
                f"epoch {row['epoch']:6.2f} {row['phase']:<12} "
                f"train {train['loss']:.4f} {train[self._train_metric]:7.2%}  "
                f"validation {valid['loss']:.4f} {valid[self._valid_metric] or 0:7.2%}"
                + (" best" if row["best"] else ""),
                style="bold" if row["best"] else None,
                highlight=False,
            )

    def truncate(self, rows: int) -> None:
        """Keep the first `rows` lines of metrics.jsonl and drop those written after the checkpoint being resumed."""
        remaining = read_metrics(self._path)[:rows]
        partial = self._path.with_suffix(".part")
        partial.write_text("".join(json.dumps(row) + "\n" for row in remaining))
        partial.replace(self._path)


class ProgressBar:
    """Context manager that shows a progress bar of the current phase or task.

    Args:
      console: receives the bar and the notes.
      metric: name of the training metric shown next to the loss.
      notes: whether to print notes.
    """

    def __init__(self, console: Console, metric: str = "accuracy", *, notes: bool = True):
        self._console = console
        self._metric = metric.replace("_", " ")
        self._notes = notes
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[metrics]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: Any = None
        self._timed_images = 0
        self._start_time = None

    def __enter__(self):
        self._bar.start()
        return self

    def __exit__(self, *_):
        self._bar.stop()

    def start_phase(self, name: str, steps: int, done: int) -> None:
        """Show a bar for a phase of `steps` steps, of which `done` are already done."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(name, total=steps, completed=done, metrics="compiling …")
        self._timed_images = 0
        self._start_time = None

    def start_task(self, name: str, images: int) -> None:
        """Show a bar for a task over `images` images that precedes the steps of a phase."""
        self.start_phase(name, images, 0)
        self._bar.update(self._task, metrics="images")

    def advance_task(self, images: int) -> None:
        """Advance the bar of a task by `images` images."""
        self._bar.update(self._task, advance=images)

    def advance_steps(self, count: int, images: int, loss: float, metric: float) -> None:
        """Advance the bar of a phase and show the latest loss, training metric and speed.

        Args:
          count: number of new steps.
          images: number of images in these steps.
          loss: training loss.
          metric: value of the training metric.
        """
        now = time.monotonic()
        if self._start_time is None:
            # The first call includes compilation: time starts after it, and its images do not count.
            self._start_time = now
            self._timed_images = -images
        self._timed_images += images
        rate = self._timed_images / (now - self._start_time) if now > self._start_time else 0.0
        self._bar.update(
            self._task, advance=count, metrics=f"loss {loss:.3f}  {self._metric} {metric:.3f}  {rate:,.0f} images/s"
        )

    def print_note(self, text: str) -> None:
        """Print a line above the bar."""
        if self._notes:
            self._console.print(text, style="dim", highlight=False, markup=False, soft_wrap=True)


def read_metrics(path: Path) -> list[dict]:
    """Return the rows of a metrics.jsonl, without a last line that was only partly written; [] without a file."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
