"""Diagram of the trainable and frozen stages of a network, phase by phase."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from PIL import Image

from tljax.report.style import BLUE, DPI, GREY, WIDTH, new_figure, save_figure, shorten

# In inches.
LEFT = 1.62  # column of phase names
RIGHT = 1.68  # column of badges
ROW = 0.42
GAP = 0.08  # between rows and between cells
HEADER = 0.28
FROZEN_COLOR = "#E4E4E4"
PARTIAL_COLOR = "#CFE3F2"
TEXT_COLOR = "#222222"
# Colors of what a phase uses besides the labeled images.
BADGES = {"teacher": "#F6D5BD", "source": "#EBD3E2", "weak": "#BFE5D8", "strong": "#BFE5D8", "ema": "#FBE7BF"}
STRIPES = 20  # stripes in a cell if all its channels are trainable


@dataclasses.dataclass(frozen=True)
class StageCell:
    """A stage, the head or an auxiliary output in one phase.

    Attributes:
      share: trainable share of its parameters, or of its channels if `partial`; 0 is frozen.
      partial: whether single channels of layers are trainable.
      lr_multipliers: relative to the learning rate of the run, ascending; several if parameter groups differ.
      batch_stats: whether its BatchNorm running statistics are updated; None without BatchNorm.
    """

    share: float
    partial: bool = False
    lr_multipliers: tuple[float, ...] = (1.0,)
    batch_stats: bool | None = None

    @property
    def caption(self) -> str:
        """The trainable share and the learning rate multiplier, each only if it is not 1."""
        parts = [_percent(self.share)] if self.partial or 0 < self.share < 1 else []
        if self.share and set(self.lr_multipliers) != {1.0}:
            parts.append("×" + "–".join(dict.fromkeys(f"{self.lr_multipliers[i]:.3g}" for i in (0, -1))))
        return "  ".join(parts)


@dataclasses.dataclass(frozen=True)
class PhaseRow:
    """One phase of a run.

    Attributes:
      name: of the phase.
      share: of the epochs of the run.
      cells: by the name of the stage, the head or the auxiliary output.
      badges: what the phase uses besides the labeled images, keys of `BADGES`.
    """

    name: str
    share: float
    cells: Mapping[str, StageCell]
    badges: tuple[str, ...] = ()


def from_dicts(phases: Sequence[Mapping]) -> list[PhaseRow]:
    """Convert the phases in result.json, as returned by `tljax.run.phase_rows.phase_rows`."""
    return [
        PhaseRow(
            phase["name"],
            phase["share"],
            {name: _cell_from_dict(cell) for name, cell in phase["cells"].items()},
            tuple(phase["badges"]),
        )
        for phase in phases
    ]


def _cell_from_dict(cell: Mapping) -> StageCell:
    return StageCell(**{**cell, "lr_multipliers": tuple(cell["lr_multipliers"])})


def draw_phase_diagram(phases: Sequence[PhaseRow], path: str | Path) -> Path:
    """Draw one row per phase and one column per stage; `draw_legend` draws the meaning of colors and badges.

    Args:
      phases: with the same stages in the same order.
      path: of the PNG.

    Returns:
      `path`.

    Raises:
      ValueError: there are no phases, or their stages differ.
    """
    if not phases:
        raise ValueError("there are no phases to draw")
    names = list(phases[0].cells)
    if any(list(phase.cells) != names for phase in phases):
        raise ValueError("the phases have different stages")
    axes = _new_axes(HEADER + len(phases) * (ROW + GAP))
    width = (WIDTH - LEFT - RIGHT) / len(names)
    size = _fit_font(8, max(names, key=len), width - GAP)
    for column, name in enumerate(names):
        _write(axes, LEFT + (column + 0.5) * width, 0.6 * HEADER, name, size=size, ha="center")
    for index, phase in enumerate(phases):
        top = HEADER + index * (ROW + GAP)
        _write_phase(axes, phase, top)
        for column, cell in enumerate(phase.cells.values()):
            _draw_cell(axes, cell, LEFT + column * width + 0.5 * GAP, top, width - GAP)
        left = WIDTH - RIGHT + 0.12
        for mark in phase.badges:
            left += _draw_badge(axes, mark, left, top + 0.5 * ROW) + 0.06
    return _save_quantized(axes, path)


def draw_legend(path: str | Path) -> Path:
    """Draw the meaning of the cells and badges of `draw_phase_diagram`; return `path`."""
    cells = {
        "trainable": StageCell(1.0),
        "a tenth of\nthe rate": StageCell(1.0, lr_multipliers=(0.1,)),
        "single\nchannels": StageCell(0.1, partial=True),
        "some\nparams": StageCell(0.3),
        "frozen": StageCell(0.0),
        "BN stats\nupdated": StageCell(1.0, batch_stats=True),
        "BN stats\nfrozen": StageCell(1.0, batch_stats=False),
    }
    badges = {
        "teacher": "outputs",
        "source": "network",
        "weak": "and",
        "strong": "views of unlabeled images",
        "ema": "of the weights (EMA)",
    }
    axes = _new_axes(ROW + 0.5)
    left = 0.06
    for text, cell in cells.items():
        _draw_cell(axes, cell, left, 0.06, 0.48)
        left += 0.69 + _write(axes, left + 0.54, 0.06 + 0.5 * ROW, text, size=7.5)
    left = 0.06
    for mark, text in badges.items():
        left += _draw_badge(axes, mark, left, ROW + 0.29) + 0.05
        left += 0.12 + _write(axes, left, ROW + 0.29, text, size=7.5)
    return _save_quantized(axes, path)


def _new_axes(height: float) -> Axes:
    """Return axes over a whole new figure, in inches from its upper left corner."""
    axes = new_figure(height, layout="none").add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    axes.set_axis_off()
    return axes


def _write_phase(axes: Axes, phase: PhaseRow, top: float) -> None:
    """Write the name of a phase, wrapped, and its share of the epochs."""
    lines = wrap(shorten(phase.name, 32), 18)
    offset = 0.12 * (len(lines) - 1)
    size = _fit_font(9, max(lines, key=len), LEFT - 0.1) - 8 * offset
    _write(axes, 0.06, top + (0.3 + offset / 2) * ROW, "\n".join(lines), size=size, weight="bold")
    share = "all" if phase.share == 1 else f"{_percent(phase.share)} of the"
    _write(axes, 0.06, top + (0.75 + offset) * ROW, f"{share} epochs", size=7.5, color="#666666")


def _draw_cell(axes: Axes, cell: StageCell, left: float, top: float, width: float) -> None:
    full = cell.share == 1 and not cell.partial
    _fill(axes, left, top, width, ROW, BLUE if full else PARTIAL_COLOR if cell.share else FROZEN_COLOR)
    if cell.partial:
        count = max(1, round(cell.share * STRIPES))
        for stripe in (np.arange(count) + 0.5) * STRIPES // count:
            _fill(axes, left + stripe * width / STRIPES, top, 0.8 * width / STRIPES, 0.35 * ROW, BLUE)
    elif not full:
        _fill(axes, left, top, cell.share * width, 0.35 * ROW, BLUE)
    color = "white" if full else TEXT_COLOR if cell.share else GREY
    # The caption is below the filled part and above the line of the statistics.
    y = top + ROW * (0.57 if cell.share and not full else 0.45)
    size = _fit_font(7.5, cell.caption, width - 0.04)
    _write(axes, left + width / 2, y, cell.caption, size=size, ha="center", color=color)
    if cell.batch_stats is not None:
        x = np.linspace(0, 1, 33)
        wave = 0.028 * np.sin(4 * np.pi * x) if cell.batch_stats else 0 * x
        axes.plot(left + width - 0.27 + 0.22 * x, top + ROW - 0.06 + wave, color=color, linewidth=1.1)


def _fill(axes: Axes, left: float, top: float, width: float, height: float, color: str) -> None:
    axes.add_patch(Rectangle((left, top), width, height, color=color, linewidth=0))


def _draw_badge(axes: Axes, mark: str, left: float, middle: float) -> float:
    """Draw a badge and return its width."""
    width = 0.062 * len(mark) + 0.1
    style = "round,pad=0,rounding_size=0.06"
    axes.add_patch(FancyBboxPatch((left, middle - 0.09), width, 0.18, boxstyle=style, color=BADGES[mark], linewidth=0))
    _write(axes, left + width / 2, middle, mark, size=7.5, ha="center")
    return width


def _write(axes: Axes, x: float, y: float, text: str, *, size: float, **style: Any) -> float:
    """Write text and return its width."""
    style.setdefault("color", TEXT_COLOR)
    artist = axes.text(x, y, text, fontsize=size, va="center_baseline", **style)
    return artist.get_window_extent().width / DPI


def _fit_font(size: float, text: str, width: float) -> float:
    """Return `size`, or a smaller font size with which the text is at most `width` inches wide."""
    return min(size, 72 * width / (0.64 * max(1, len(text))))


def _percent(share: float) -> str:
    return "100 %" if share >= 0.995 else f"{100 * share:.3g} %"


def _save_quantized(axes: Axes, path: str | Path) -> Path:
    """Write the figure in 64 colors, which suffice for its few shades and take a third of the bytes."""
    path = save_figure(cast(Figure, axes.figure), path)
    with Image.open(path) as image:
        quantized = image.convert("RGB").quantize(64, dither=Image.Dither.NONE)
    quantized.save(path, optimize=True)
    return path
