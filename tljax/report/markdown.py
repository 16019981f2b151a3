"""The Markdown report of one run, filled into the template that lies beside this module."""

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tljax.report.loggers import read_metrics
from tljax.report.tables import MISSING, escape
from tljax.storage.run_files import read_json
from tljax.tasks import TASKS, Task

# What the columns of a table of classes are called, where their keys are not it.
HEADINGS = {"f1": "F1", "support": "pictures", "iou": "IoU", "dice": "Dice", "ap": "AP", "ap50": "AP50"}


def write(workdir: str | Path) -> Path:
    """Draw the figures of a finished run and write its report.md, from the files of its work directory alone.

    Args:
      workdir: with config.json, result.json and metrics.jsonl; figure_data.npz, which the figures of the task are drawn
        from, may be missing, and its figures are left out then.

    Returns:
      The path of report.md.

    Raises:
      FileNotFoundError: config.json or result.json is missing.
      jinja2.UndefinedError: result.json lacks a key.
    """
    workdir = Path(workdir)
    config = json.loads((workdir / "config.json").read_text())
    result = read_json(workdir / "result.json")
    history, task = read_metrics(workdir / "metrics.jsonl"), TASKS[result["task"]]
    figures = draw(workdir, result, history, task) if config["report"]["figures"] else {}
    path = workdir / "report.md"
    path.write_text(render(workdir, result, config, history, figures, task), encoding="utf-8")
    return path


def draw(workdir: Path, result: Mapping, history: list[dict], task: Task) -> dict[str, Path]:
    """Draw what the files of a work directory tell; returns the PNGs by their names in the report."""
    from tljax.report import figures, phase_diagram  # Matplotlib takes a second to import

    folder, data = workdir / "figures", workdir / "figure_data.npz"
    drawn = {"curves": figures.draw_curves(history, folder / "curves.png", task.metrics[0], task.train_metric_name)}
    if "phase_rows" in result:
        drawn["blocks"] = phase_diagram.draw_phase_diagram(
            phase_diagram.from_dicts(result["phase_rows"]), folder / "blocks.png"
        )
    if data.is_file():
        with np.load(data) as arrays:
            drawn |= task.figures(dict(arrays), result["test"], result["data"]["classes"], folder)
    return drawn


def render(
    workdir: Path,
    result: dict,
    config: dict,
    history: list[dict],
    figures: Mapping[str, Path],
    task: Task,
) -> str:
    """Return the text of a report.

    `figures` maps names of `draw` to PNGs under `workdir`; the section of a missing one is left out. `history` holds
    one row per validation, `task` says which metrics there are. Raises ValueError when a figure lies outside
    `workdir`, jinja2.UndefinedError when `result` lacks a key.
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
            metrics=task.metrics,
            columns=_columns(result),
        )
    )


@functools.cache
def _environment() -> Environment:
    """Kept, because a template is compiled when it is first asked for."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        bytes=humanise_bytes,
        cell=escape,
        column=lambda key: HEADINGS.get(key, key),
        entry=lambda value: f"{value:,}" if isinstance(value, int) else number(value),
        fenced=fenced,
        number=number,
        seconds=humanise_seconds,
    )
    return environment


def _columns(result: dict) -> list[str]:
    """What is told of each class."""
    return [name for name in result["test"]["per_class"][0] if name != "class"]


def title(config: Mapping) -> str:
    """Names of backbone, data and strategy of a config tree."""
    return escape(", ".join((config["model"]["backbone"], config["data"]["name"], config["strategy"]["name"])))


def number(value: float | None, sign: bool = False) -> str:
    """Four decimals, a dash for None; with `sign`, a plus or minus always stands in front."""
    if value is None:
        return MISSING
    return f"{value:+.4f}" if sign else f"{value:.4f}"


def humanise_bytes(count: int | None) -> str:
    """Bytes with a binary unit, as "12.3 MiB"; a dash for None."""
    if count is None:
        return MISSING
    size, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{count} B" if units[0] == "B" else f"{size:.1f} {units[0]}"


def humanise_seconds(seconds: float | None) -> str:
    """Seconds as "8.3 s", "12 min 05 s" or "3 h 07 min"; a dash for None."""
    if seconds is None:
        return MISSING
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def fenced(text: str, language: str) -> str:
    """`text` as a Markdown code block, fenced by more backticks than it holds itself."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _links(figures: Mapping[str, Path], workdir: Path) -> dict[str, str]:
    """Relative links of the figures that exist."""
    links = {}
    for key, path in figures.items():
        if path is None or not Path(path).is_file():
            continue
        if not Path(path).resolve().is_relative_to(workdir.resolve()):
            raise ValueError(f"figure {path} lies outside {workdir}")
        links[key] = quote(Path(path).resolve().relative_to(workdir.resolve()).as_posix())
    return links
