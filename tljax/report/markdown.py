"""The Markdown report of one run, rendered from `templates/report.md.j2`."""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tljax.report.loggers import read_metrics
from tljax.report.tables import MISSING, escape
from tljax.storage.run_files import read_config, read_json
from tljax.tasks import Metric, Task, metrics_of, task_of

# Column headers of the table of classes, where they differ from the keys.
HEADINGS = {"f1": "F1", "support": "images", "iou": "IoU", "dice": "Dice", "ap": "AP", "ap50": "AP50"}


def write_report(workdir: str | Path) -> Path:
    """Draw the figures of a finished run and write its report.md, using only the files of its work directory.

    Args:
      workdir: contains config.json, result.json and metrics.jsonl. The figures of the task need figure_data.npz and are
        omitted without it.

    Returns:
      The path of report.md.

    Raises:
      FileNotFoundError: config.json or result.json is missing.
      jinja2.UndefinedError: result.json lacks a key.
    """
    workdir = Path(workdir)
    config = json.loads((workdir / "config.json").read_text())
    result = read_json(workdir / "result.json")
    history = read_metrics(workdir / "metrics.jsonl")
    checked_config = read_config(workdir / "config.json")
    task = task_of(checked_config)
    figures = draw_figures(workdir, result, history, task) if config["report"]["figures"] else {}
    path = workdir / "report.md"
    text = render(workdir, result, config, history, figures, metrics_of(checked_config))
    path.write_text(text, encoding="utf-8")
    return path


def draw_figures(workdir: Path, result: Mapping, history: list[dict], task: Task) -> dict[str, Path]:
    """Draw the figures of a run whose data its work directory has.

    Args:
      workdir: the figures are written to its folder figures/.
      result: content of result.json.
      history: rows of metrics.jsonl.
      task: of the run.

    Returns:
      {name of the figure in the template: path of the PNG}.
    """
    from tljax.report import figures, phase_diagram  # Matplotlib takes a second to import

    folder = workdir / "figures"
    paths = {"curves": figures.draw_curves(history, folder / "curves.png", task.metrics[0], task.train_metric_name)}
    # Runs of earlier versions have neither phase_rows nor figure_data.npz.
    if "phase_rows" in result:
        phases = phase_diagram.from_dicts(result["phase_rows"])
        paths["blocks"] = phase_diagram.draw_phase_diagram(phases, folder / "blocks.png")
    data = workdir / "figure_data.npz"
    if data.is_file():
        with np.load(data) as arrays:
            paths |= task.figures(dict(arrays), result["test"], result["data"]["classes"], folder)
    return paths


def render(
    workdir: Path,
    result: dict,
    config: dict,
    history: list[dict],
    figures: Mapping[str, Path],
    metrics: Sequence[Metric],
) -> str:
    """Return the text of a report.

    Args:
      workdir: links to figures are relative to it.
      result: content of result.json.
      config: content of config.json.
      history: one row per validation round.
      figures: {name: path of the PNG}, as `draw` returns it; the section of a missing figure is omitted.
      metrics: of the run; the first one selected the best model.

    Raises:
      ValueError: a figure is outside `workdir`.
      jinja2.UndefinedError: `result` lacks a key.
    """
    return (
        _environment()
        .get_template("report.md.j2")
        .render(
            result=result,
            config=json.dumps(config, indent=2, default=str),
            history=history,
            figures=_links(figures, workdir),
            title=title(config),
            metrics=metrics,
            columns=[name for name in _first_class(result["test"]) if name != "class"],
        )
    )


def _first_class(test: Mapping) -> Mapping:
    """Return the row of the first class; {} if the task has no metrics of each class."""
    return test["per_class"][0] if test.get("per_class") else {}


@functools.cache
def _environment() -> Environment:
    """Return the template environment; cached, because a template is compiled on first use."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        bytes=format_bytes,
        cell=escape,
        column=lambda key: HEADINGS.get(key, key),
        entry=lambda value: f"{value:,}" if isinstance(value, int) else format_number(value),
        fenced=fenced,
        number=format_number,
        seconds=format_seconds,
    )
    return environment


def title(config: Mapping) -> str:
    """Return the title of a report: backbone, data and strategy of a config given as a dict."""
    return escape(", ".join((config["model"]["backbone"], config["data"]["name"], config["strategy"]["name"])))


def format_number(value: float | None, sign: bool = False) -> str:
    """Format a value with four decimals, and with `sign` always a plus or minus; a dash for None."""
    if value is None:
        return MISSING
    return f"{value:+.4f}" if sign else f"{value:.4f}"


def format_bytes(count: int | None) -> str:
    """Format bytes with a binary unit, as in "12.3 MiB"; a dash for None."""
    if count is None:
        return MISSING
    if count < 1024:
        return f"{count} B"
    size = count / 1024
    for unit in ("KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def format_seconds(seconds: float | None) -> str:
    """Format seconds as "8.3 s", "12 min 05 s" or "3 h 07 min"; a dash for None."""
    if seconds is None:
        return MISSING
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def fenced(text: str, language: str) -> str:
    """Return `text` as a Markdown code block, fenced by more backticks than it contains in a row."""
    longest = max((len(backticks) for backticks in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _links(figures: Mapping[str, Path], workdir: Path) -> dict[str, str]:
    """Return the relative link of each figure that exists."""
    links = {}
    for key, path in figures.items():
        if path is None or not Path(path).is_file():
            continue
        if not Path(path).resolve().is_relative_to(workdir.resolve()):
            raise ValueError(f"figure {path} is outside {workdir}")
        links[key] = quote(Path(path).resolve().relative_to(workdir.resolve()).as_posix())
    return links
