"""Validation accuracy over two tuned fields of a sweep, a map for each compared setting."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tljax.report import tables
from tljax.report.style import new_figure, save, short

COLUMNS = 2


def draw_heat_map(cells: Sequence[Mapping], tuned: Sequence[str], path: str | Path) -> Path | None:
    """Draws the mean validation accuracy over seeds, the best over further tuned fields, as one PNG.

    Args:
      cells: with `settings`, dotted name → value, and `valid`, accuracy as a fraction or None where a run diverged.
      tuned: dotted names of the fields that validation chooses; the first two with several values are the axes.
      path: of the PNG.

    Returns:
      The path; None where fewer than two fields vary.
    """
    axes = [name for name in tuned if len({str(cell["settings"][name]) for cell in cells}) > 1][:2]
    if len(axes) < 2:
        return None
    values = [list(dict.fromkeys(cell["settings"][name] for cell in cells)) for name in axes]
    panels: dict[str, dict[tuple, list]] = {}
    for cell in cells:
        settings = cell["settings"]
        compared = {k: v for k, v in settings.items() if k not in tuned and k != "seed"}
        further = tuple(settings[name] for name in tuned if name not in axes)
        panel = panels.setdefault(", ".join(f"{tables.label(k)} {v}" for k, v in compared.items()), {})
        panel.setdefault((settings[axes[0]], settings[axes[1]], further), []).append(cell["valid"])
    grids = {name: _grid(panel, values) for name, panel in panels.items()}
    low, high = np.nanmin(list(grids.values())), np.nanmax(list(grids.values()))
    rows = math.ceil(len(grids) / COLUMNS)
    figure = new_figure(rows * (1.1 + 0.42 * len(values[0])))
    places = figure.subplots(rows, min(COLUMNS, len(grids)), squeeze=False).ravel()
    for (name, grid), place in zip(grids.items(), places, strict=False):
        image = place.imshow(grid, cmap="viridis", vmin=low, vmax=high, aspect="auto")
        for (y, x), value in np.ndenumerate(grid):
            # Dark letters on the bright end; a run that diverged has no number.
            colour = "black" if math.isnan(value) or value > (low + high) / 2 else "white"
            text = "–" if math.isnan(value) else f"{100 * value:.1f}"
            weight = "bold" if value == np.nanmax(grid) else "normal"
            place.text(x, y, text, ha="center", va="center", fontsize=8, color=colour, fontweight=weight)
        place.set_yticks(range(len(values[0])), [_name(v) for v in values[0]])
        place.set_xticks(range(len(values[1])), [_name(v) for v in values[1]])
        place.set(ylabel=tables.headers(axes)[0], xlabel=tables.headers(axes)[1])
        place.set_title(short(name or "validation accuracy, %", 50), fontsize=9, loc="left")
    for place in places[len(grids) :]:
        place.axis("off")
    figure.colorbar(image, ax=places.tolist(), label="validation accuracy", shrink=0.8)
    return save(figure, path)


def _name(value) -> str:
    return f"{value:g}" if isinstance(value, float) else short(value, 12)


def _grid(panel: Mapping[tuple, list], values: Sequence[Sequence]) -> np.ndarray:
    """[first, second]: the best of the means over seeds; NaN where every run diverged."""
    grid = np.full((len(values[0]), len(values[1])), np.nan)
    for (first, second, _), found in panel.items():
        place = values[0].index(first), values[1].index(second)
        if None not in found:
            grid[place] = np.fmax(grid[place], np.mean(found))
    return grid
