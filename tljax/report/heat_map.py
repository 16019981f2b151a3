"""Heat maps of the validation accuracy of a sweep over two tuned fields."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from tljax.report import tables
from tljax.report.style import new_figure, save_figure, shorten

COLUMNS = 2


def draw_heat_map(trials: Sequence[Mapping], tuned: Sequence[str], path: str | Path) -> Path | None:
    """Draw one heat map of validation accuracy for each combination of the compared (not tuned) settings.

    Each value is the mean over seeds, maximized over the tuned fields that are not axes.

    Args:
      trials: dicts with `settings`, {dotted name: value}, and `valid`, the accuracy as a fraction or None if the run
        diverged.
      tuned: dotted names of the fields chosen on validation; the first two that vary are the axes.
      path: of the PNG.

    Returns:
      `path`, or None if fewer than two fields vary.
    """
    axis_fields = [name for name in tuned if len({str(trial["settings"][name]) for trial in trials}) > 1][:2]
    if len(axis_fields) < 2:
        return None
    values = [list(dict.fromkeys(trial["settings"][name] for trial in trials)) for name in axis_fields]
    grids = {name: _grid(panel, values) for name, panel in _group(trials, tuned, axis_fields).items()}
    low = np.nanmin(list(grids.values()))
    high = np.nanmax(list(grids.values()))
    rows = math.ceil(len(grids) / COLUMNS)
    figure = new_figure(rows * (1.1 + 0.42 * len(values[0])))
    panels = figure.subplots(rows, min(COLUMNS, len(grids)), squeeze=False).ravel()
    ylabel, xlabel = tables.headers(axis_fields)
    for (name, grid), axes in zip(grids.items(), panels, strict=False):
        image = axes.imshow(grid, cmap="viridis", vmin=low, vmax=high, aspect="auto")
        _write_values(axes, grid, (low + high) / 2)
        axes.set_yticks(range(len(values[0])), [_format(v) for v in values[0]])
        axes.set_xticks(range(len(values[1])), [_format(v) for v in values[1]])
        axes.set(ylabel=ylabel, xlabel=xlabel)
        axes.set_title(shorten(name or "validation accuracy, %", 50), fontsize=9, loc="left")
    for axes in panels[len(grids) :]:
        axes.axis("off")
    figure.colorbar(image, ax=panels.tolist(), label="validation accuracy", shrink=0.8)
    return save_figure(figure, path)


def _group(
    trials: Sequence[Mapping], tuned: Sequence[str], axis_fields: Sequence[str]
) -> dict[str, dict[tuple, list[float | None]]]:
    """Return {compared settings: {(y value, x value, other tuned values): accuracies over seeds}}."""
    y_field, x_field = axis_fields
    panels: dict[str, dict[tuple, list[float | None]]] = {}
    for trial in trials:
        settings = trial["settings"]
        compared = {k: v for k, v in settings.items() if k not in tuned and k != "seed"}
        other_tuned = tuple(settings[name] for name in tuned if name not in axis_fields)
        panel = panels.setdefault(", ".join(f"{tables.short_field_name(k)} {v}" for k, v in compared.items()), {})
        panel.setdefault((settings[y_field], settings[x_field], other_tuned), []).append(trial["valid"])
    return panels


def _grid(panel: Mapping[tuple, list], values: Sequence[Sequence]) -> np.ndarray:
    """Return the best mean over seeds for each pair of values, [len(values[0]), len(values[1])].

    NaN where, for all other tuned values, a run diverged.
    """
    grid = np.full((len(values[0]), len(values[1])), np.nan)
    for (y_value, x_value, _), accuracies in panel.items():
        index = values[0].index(y_value), values[1].index(x_value)
        if None not in accuracies:
            grid[index] = np.fmax(grid[index], np.mean(accuracies))
    return grid


def _write_values(axes: Axes, grid: np.ndarray, middle: float) -> None:
    """Write each value in its square: dark text on colors above `middle`, the best in bold, a dash for NaN."""
    for (y, x), value in np.ndenumerate(grid):
        color = "black" if math.isnan(value) or value > middle else "white"
        text = "–" if math.isnan(value) else f"{100 * value:.1f}"
        weight = "bold" if value == np.nanmax(grid) else "normal"
        axes.text(x, y, text, ha="center", va="center", fontsize=8, color=color, fontweight=weight)


def _format(value) -> str:
    return f"{value:g}" if isinstance(value, float) else shorten(value, 12)
