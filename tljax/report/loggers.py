"""What happens while it happens: metrics.jsonl, TensorBoard events, a line a validation, and a progress bar."""

from __future__ import annotations

import json
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tljax.tasks import Task


class MetricLogger:
    """The validations of one run, a context manager: a file, events, and lines.

    Args:
      workdir: where metrics.jsonl and tensorboard/ go.
      console: for the lines.
      task: whose metrics they show.
      tensorboard: whether events are written.
      lines: whether each validation gets a line on the console.
    """

    def __init__(self, workdir: Path, console: Console, task: Task, *, tensorboard: bool = True, lines: bool = True):
        self._shown = task.train_metric_name, task.metrics[0][0]
        self._path, self._console, self._lines = workdir / "metrics.jsonl", console, lines
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
        """Appends a validation to metrics.jsonl and to the events."""
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
            train, valid, (seen, score) = row["train"], row["valid"], self._shown
            self._console.print(
                f"epoch {row['epoch']:6.2f} {row['phase']:<12} train {train['loss']:.4f} {train[seen]:7.2%}  "
                f"validation {valid['loss']:.4f} {valid[score] or 0:7.2%}" + (" best" if row["best"] else ""),
                style="bold" if row["best"] else None,
                highlight=False,
            )

    def truncate(self, rows: int) -> None:
        """Drops lines of metrics.jsonl that were written after the checkpoint that the run goes on from."""
        kept = read_metrics(self._path)[:rows]
        partial = self._path.with_suffix(".part")
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
        partial.replace(self._path)


class ProgressBar:
    """A progress bar of what goes on, a context manager.

    Args:
      console: for the bar and the notes.
      seen: name of what the steps show besides the loss.
      notes: whether notes are printed.
    """

    def __init__(self, console: Console, seen: str = "accuracy", *, notes: bool = True):
        self._console, self._seen, self._notes = console, seen.replace("_", " "), notes
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
        self._task, self._pictures, self._since = None, 0, None

    def __enter__(self):
        self._bar.start()
        return self

    def __exit__(self, *_):
        self._bar.stop()

    def start_phase(self, name: str, steps: int, done: int) -> None:
        """Shows a bar for the phase; `done` steps of it lie behind."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(name, total=steps, completed=done, metrics="compiling …")
        self._pictures, self._since = 0, None

    def start_task(self, what: str, pictures: int) -> None:
        """Shows a bar for what goes before the steps of a phase, over so many pictures."""
        self.start_phase(what, pictures, 0)
        self._bar.update(self._task, metrics="pictures")

    def advance_task(self, pictures: int) -> None:
        """So many of them are done."""
        self._bar.update(self._task, advance=pictures)

    def steps(self, count: int, pictures: int, loss: float, seen: float) -> None:
        """Advances the bar; the first program, which is compiled, does not count for the speed."""
        now = time.monotonic()
        if self._since is None:
            self._since, self._pictures = now, -pictures
        self._pictures += pictures
        rate = self._pictures / (now - self._since) if now > self._since else 0.0
        self._bar.update(
            self._task, advance=count, metrics=f"loss {loss:.3f}  {self._seen} {seen:.3f}  {rate:,.0f} pictures/s"
        )

    def note(self, text: str) -> None:
        """Prints a line."""
        if self._notes:
            self._console.print(text, style="dim", highlight=False, markup=False, soft_wrap=True)


def read_metrics(path: Path) -> list[dict]:
    """The rows of a metrics.jsonl; a last line that was cut off in writing is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
