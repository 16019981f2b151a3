"""Comparison tables of a sweep: trials grouped over seeds, as Markdown or for the terminal."""

import json
import math
import re

import numpy as np
from rich.table import Table
from rich.text import Text
from scipy.special import stdtrit  # scipy.stats takes a second to import

MISSING = "\u2013"
RESULT_COLUMNS = ("validation %", "test %", "trainable parameters", "seconds")


def escape(value) -> str:
    """Return `value` as text that is safe inside a Markdown table cell; None becomes a dash."""
    text = MISSING if value is None else " ".join(str(value).split())
    return re.sub(r"([\\`*|<\[])", r"\\\1", text)


def mean_interval(values) -> tuple[float, float | None]:
    """Return the mean and the half-width of its 95 % Student-t interval (None for a single value).

    Raises:
      ValueError: `values` is empty.
    """
    values = np.asarray(values, dtype=float)
    if not values.size:
        raise ValueError("no values to average")
    if values.size == 1:
        return float(values[0]), None
    standard_error = values.std(ddof=1) / math.sqrt(values.size)
    return float(values.mean()), float(stdtrit(values.size - 1, 0.975) * standard_error)


def summarize_trials(trials: list[dict]) -> list[dict]:
    """Average the trials of a sweep over seeds.

    Args:
      trials: dicts with `settings`, {dotted name: value}, and `result`, as in result.json.

    Returns:
      One dict per combination of the other settings, in order of first appearance: `settings` (without seed), `seeds`
      (their number), `valid` and `test` (mean score as a fraction, half-width of its 95 % interval or None),
      `trainable_parameters` (maximum over phases) and `seconds` (mean per trial).

    Raises:
      ValueError: a seed occurs twice under the same settings, which would make the interval too narrow.
    """
    groups: dict[str, list[dict]] = {}
    for trial in trials:
        key = json.dumps(_without_seed(trial["settings"]), sort_keys=True, default=str)
        groups.setdefault(key, []).append(trial)
    return [_summary_row(group) for group in groups.values()]


def _summary_row(trials: list[dict]) -> dict:
    settings = _without_seed(trials[0]["settings"])
    results = [trial["result"] for trial in trials]
    seeds = [trial["settings"].get("seed", trial["result"].get("seed")) for trial in trials]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds {seeds} repeat under the settings {settings}")
    return {
        "settings": settings,
        "seeds": len(seeds),
        "valid": mean_interval([selection_score(result, "valid") for result in results]),
        "test": mean_interval([selection_score(result, "test") for result in results]),
        "trainable_parameters": max(
            (phase["trainable_parameters"] for result in results for phase in result["phases"]),
            default=0,
        ),
        "seconds": sum(result["seconds"] for result in results) / len(results),
    }


def selection_score(result: dict, split: str) -> float:
    """Return the metric that the best epoch was selected by, on a split; 0 where it is undefined."""
    return result[split][result.get("metric", "accuracy")] or 0.0


def _without_seed(settings: dict) -> dict:
    return {name: value for name, value in settings.items() if name != "seed"}


def varying_fields(rows: list[dict]) -> list[str]:
    """Return the dotted names of the settings that differ between rows."""
    names = dict.fromkeys(name for row in rows for name in row["settings"])
    return [name for name in names if len({str(row["settings"].get(name)) for row in rows}) > 1]


def short_field_name(name: str) -> str:
    """Return the short name of a dotted field: its last part, without a final `.name`."""
    return name.removesuffix(".name").rpartition(".")[2]


def headers(names: list[str]) -> list[str]:
    """Return the short name of each dotted field, or its full name if two short names are equal."""
    labels = [short_field_name(name) for name in names]
    pairs = zip(labels, names, strict=True)
    return [short if labels.count(short) == 1 else name for short, name in pairs]


def percent(interval: tuple[float, float | None]) -> str:
    """Format a (mean, half-width) of fractions as "91.20 ± 0.35", or "91.20" without a half-width."""
    mean, half_width = interval
    return f"{100 * mean:.2f}" + ("" if half_width is None else f" ± {100 * half_width:.2f}")


def table_content(rows: list[dict], columns: list[str] | None = None):
    """Return the content of both tables.

    Args:
      rows: of `summarise`.
      columns: dotted names of settings; by default those that vary.

    Returns:
      (headers, rows of strings, whether each row has the best test mean).
    """
    columns = varying_fields(rows) if columns is None else columns
    body = []
    for row in rows:
        values = (row["settings"].get(name) for name in columns)
        body.append(
            [
                *(MISSING if value is None else str(value) for value in values),
                percent(row["valid"]),
                percent(row["test"]),
                f"{row['trainable_parameters']:,}",
                f"{row['seconds']:,.1f}",
            ]
        )
    highest = max((row["test"][0] for row in rows), default=0.0)
    best = [math.isclose(row["test"][0], highest, rel_tol=1e-9) for row in rows]
    return [*headers(columns), *RESULT_COLUMNS], body, best


def footnote(rows: list[dict]) -> str:
    """Return an explanation of the ±; empty if every row has a single seed."""
    counts = sorted({row["seeds"] for row in rows})
    if not counts or counts[-1] == 1:
        return ""
    seeds = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"± is the half-width of the 95 % Student-t interval over {seeds} seeds."


def markdown_table(rows: list[dict], columns: list[str] | None = None) -> str:
    """Return the comparison as a Markdown table with its footnote, the rows with the best test mean in bold."""
    header, body, best = table_content(rows, columns)
    num_results = len(RESULT_COLUMNS)
    rule = ["---"] * (len(header) - num_results) + ["---:"] * num_results
    lines = [[escape(name) for name in header], rule]
    for row, bold in zip(body, best, strict=True):
        lines.append([f"**{escape(text)}**" if bold else escape(text) for text in row])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    note = footnote(rows)
    return f"{table}\n\n{note}\n" if note else f"{table}\n"


def rich_table(rows: list[dict], columns: list[str] | None = None) -> Table:
    """Return the comparison as a `rich` table with its footnote as caption, the best test rows in bold."""
    header, body, best = table_content(rows, columns)
    table = Table(caption=footnote(rows) or None)
    for index, name in enumerate(header):
        numeric = index >= len(header) - len(RESULT_COLUMNS)
        table.add_column(Text(name), justify="right" if numeric else "left", no_wrap=not numeric)
    for row, bold in zip(body, best, strict=True):
        # Text, not str: a setting such as "[4, 4]" must not be read as markup.
        table.add_row(*(Text(text) for text in row), style="bold" if bold else None)
    return table
