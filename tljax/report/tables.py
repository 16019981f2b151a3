"""Comparison tables of a sweep: cells grouped over seeds, as Markdown or for the terminal."""

import json
import math
import re

import numpy as np
from rich.table import Table
from rich.text import Text
from scipy.special import stdtrit  # scipy.stats takes a second to import

MISSING = "\u2013"
RESULT_COLUMNS = ("validation %", "test %", "learned parameters", "seconds")


def escape(value) -> str:
    """Text safe inside a Markdown table cell; None becomes a dash."""
    text = MISSING if value is None else " ".join(str(value).split())
    return re.sub(r"([\\`*|<\[])", r"\\\1", text)


def mean_interval(values) -> tuple[float, float | None]:
    """Mean, and half-width of its 95 % Student-t interval (None for a single value).

    Raises ValueError when `values` is empty.
    """
    values = np.asarray(values, dtype=float)
    if not values.size:
        raise ValueError("no values to average")
    if values.size == 1:
        return float(values[0]), None
    error = values.std(ddof=1) / math.sqrt(values.size)
    return float(values.mean()), float(stdtrit(values.size - 1, 0.975) * error)


def summarise(cells: list[dict]) -> list[dict]:
    """Group the cells of a sweep over the setting `seed`, in order of first appearance.

    A cell is {"settings": {dotted name: value}, "result": result}. A row holds `settings` (without
    seed), `seeds` (how many), `valid` and `test` (mean score as a fraction, half-width of its
    95 % interval or None), `trainable_parameters` (largest over phases), `seconds` (mean per cell).

    Raises ValueError when a seed stands twice under the same settings, as a repeated cell would
    make the interval look narrower than it is.
    """
    groups: dict[str, list[dict]] = {}
    for cell in cells:
        key = json.dumps(_without_seed(cell["settings"]), sort_keys=True, default=str)
        groups.setdefault(key, []).append(cell)
    return [_row(group) for group in groups.values()]


def _row(group: list[dict]) -> dict:
    settings = _without_seed(group[0]["settings"])
    results = [cell["result"] for cell in group]
    seeds = [cell["settings"].get("seed", cell["result"].get("seed")) for cell in group]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds {seeds} repeat under the settings {settings}")
    return {
        "settings": settings,
        "seeds": len(seeds),
        "valid": mean_interval([score(result, "valid") for result in results]),
        "test": mean_interval([score(result, "test") for result in results]),
        "trainable_parameters": max(
            (phase["trainable_parameters"] for result in results for phase in result["phases"]),
            default=0,
        ),
        "seconds": sum(result["seconds"] for result in results) / len(results),
    }


def score(result: dict, split: str) -> float:
    """What the model of a result was chosen by, on a split; 0 where there was nothing to find."""
    return result[split][result.get("metric", "accuracy")] or 0.0


def _without_seed(settings: dict) -> dict:
    return {name: value for name, value in settings.items() if name != "seed"}


def varying_fields(rows: list[dict]) -> list[str]:
    """Dotted names of the settings that do not hold one same value in every row."""
    names = dict.fromkeys(name for row in rows for name in row["settings"])
    return [name for name in names if len({str(row["settings"].get(name)) for row in rows}) > 1]


def label(name: str) -> str:
    """What a dotted field is called in short: its last part, or what it is the name of."""
    return name.removesuffix(".name").rpartition(".")[2]


def headers(names: list[str]) -> list[str]:
    """The short name of each field; the whole name where two would read the same."""
    last = [label(name) for name in names]
    pairs = zip(last, names, strict=True)
    return [short if last.count(short) == 1 else name for short, name in pairs]


def percent(interval: tuple[float, float | None]) -> str:
    """A (mean, half-width) of fractions as "91.20 ± 0.35", or "91.20" without a half-width."""
    mean, half_width = interval
    return f"{100 * mean:.2f}" + ("" if half_width is None else f" ± {100 * half_width:.2f}")


def comparison(rows: list[dict], columns: list[str] | None = None):
    """What both tables show: (headers, body of strings, whether each row has the best test mean).

    `columns` are dotted names of settings; by default those that vary.
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
    top = max((row["test"][0] for row in rows), default=0.0)
    best = [math.isclose(row["test"][0], top, rel_tol=1e-9) for row in rows]
    return [*headers(columns), *RESULT_COLUMNS], body, best


def footnote(rows: list[dict]) -> str:
    """What the ± means; empty when every row has a single seed."""
    counts = sorted({row["seeds"] for row in rows})
    if not counts or counts[-1] == 1:
        return ""
    seeds = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"± is the half-width of the 95 % Student-t interval over {seeds} seeds."


def markdown(rows: list[dict], columns: list[str] | None = None) -> str:
    """The comparison as a Markdown table, best test row(s) in bold, with its footnote."""
    header, body, best = comparison(rows, columns)
    numeric = len(RESULT_COLUMNS)
    rule = ["---"] * (len(header) - numeric) + ["---:"] * numeric
    lines = [[escape(name) for name in header], rule]
    for row, bold in zip(body, best, strict=True):
        lines.append([f"**{escape(text)}**" if bold else escape(text) for text in row])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    note = footnote(rows)
    return f"{table}\n\n{note}\n" if note else f"{table}\n"


def rich_table(rows: list[dict], columns: list[str] | None = None) -> Table:
    """The comparison as a `rich` table, best test row(s) in bold, with its footnote as caption."""
    header, body, best = comparison(rows, columns)
    table = Table(caption=footnote(rows) or None)
    for position, name in enumerate(header):
        numeric = position >= len(header) - len(RESULT_COLUMNS)
        table.add_column(Text(name), justify="right" if numeric else "left", no_wrap=not numeric)
    for row, bold in zip(body, best, strict=True):
        # Text, not str: a setting such as "[4, 4]" must not be read as markup.
        table.add_row(*(Text(text) for text in row), style="bold" if bold else None)
    return table
