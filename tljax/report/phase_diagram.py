"""A picture of which blocks of a network learn, phase by phase."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle
from PIL import Image

from tljax.report.style import BLUE, DPI, GREY, WIDTH, new_figure, save, short

# In inches: the columns of names and of marks, a row, what separates rows and blocks, and the line of headers.
LEFT, RIGHT, ROW, GAP, HEADER = 1.62, 1.68, 0.42, 0.08, 0.28
STILL, PALE, INK = "#E4E4E4", "#CFE3F2", "#222222"
# Colours of what a phase uses besides the labelled pictures.
BADGES = {"teacher": "#F6D5BD", "source": "#EBD3E2", "weak": "#BFE5D8", "strong": "#BFE5D8", "average": "#FBE7BF"}
STRIPES = 20  # of a block of which single neurons learn


@dataclasses.dataclass(frozen=True)
class StageCell:
    """A stage, the head, or a further output of it, in one phase.

    Attributes:
      share: of its parameters, or with `single` of its neurons, that learn; 0 is frozen.
      single: whether single neurons learn.
      lr_multipliers: of the run's learning rate, ascending; more than one where rules differ.
      moves: whether its BatchNorm statistics follow the batches; None: it has none.
    """

    share: float
    partial: bool = False
    lr_multipliers: tuple[float, ...] = (1.0,)
    batch_stats: bool | None = None

    @property
    def caption(self) -> str:
        """The share and the multiple, where they are not one."""
        parts = [_percent(self.share)] if self.partial or 0 < self.share < 1 else []
        if self.share and set(self.lr_multipliers) != {1.0}:
            parts.append("×" + "–".join(dict.fromkeys(f"{self.lr_multipliers[i]:.3g}" for i in (0, -1))))
        return "  ".join(parts)


@dataclasses.dataclass(frozen=True)
class PhaseRow:
    """A phase: its name, its share of the epochs, its blocks by name, and what else it uses, as keys of `CHIPS`."""

    name: str
    share: float
    cells: Mapping[str, StageCell]
    marks: tuple[str, ...] = ()


def from_dicts(phases: Sequence[Mapping]) -> list[PhaseRow]:
    """Reads what result.json holds of the phases, as `tljax.run.phase_rows.phase_rows` wrote it."""

    def read(block: Mapping) -> StageCell:
        return StageCell(**block | {"lr_multipliers": tuple(block["lr_multipliers"])})

    return [
        PhaseRow(p["name"], p["share"], {name: read(block) for name, block in p["cells"].items()}, tuple(p["marks"]))
        for p in phases
    ]


def draw_phase_diagram(phases: Sequence[PhaseRow], path: str | Path) -> Path:
    """Draw one row a phase, one column a block; `key` draws what the marks mean.

    Raises ValueError when there are no phases, or their blocks differ.
    """
    if not phases:
        raise ValueError("there are no phases to draw")
    names = list(phases[0].cells)
    if any(list(phase.cells) != names for phase in phases):
        raise ValueError("the phases have different blocks")
    axes = _paper(HEADER + len(phases) * (ROW + GAP))
    width = (WIDTH - LEFT - RIGHT) / len(names)
    for column, name in enumerate(names):
        size = _fitting(8, max(names, key=len), width - GAP)
        _write(axes, LEFT + (column + 0.5) * width, 0.6 * HEADER, name, size=size, ha="center")
    for index, phase in enumerate(phases):
        top = HEADER + index * (ROW + GAP)
        name, share = wrap(short(phase.name, 32), 18), "all" if phase.share == 1 else f"{_percent(phase.share)} of the"
        size, lower = _fitting(9, max(name, key=len), LEFT - 0.1), 0.12 * (len(name) - 1)
        _write(axes, 0.06, top + (0.3 + lower / 2) * ROW, "\n".join(name), size=size - 8 * lower, weight="bold")
        _write(axes, 0.06, top + (0.75 + lower) * ROW, f"{share} epochs", size=7.5, color="#666666")
        for column, block in enumerate(phase.cells.values()):
            _draw(axes, block, LEFT + column * width + 0.5 * GAP, top, width - GAP)
        left = WIDTH - RIGHT + 0.12
        for mark in phase.marks:
            left += _chip(axes, mark, left, top + 0.5 * ROW) + 0.06
    return _saved(axes, path)


def draw_legend(path: str | Path) -> Path:
    """Draw what the marks of `blocks` mean."""
    specimens = {
        "learns": StageCell(1.0),
        "a tenth of\nthe rate": StageCell(1.0, lr_multipliers=(0.1,)),
        "single\nneurons": StageCell(0.1, partial=True),
        "some\nleaves": StageCell(0.3),
        "frozen": StageCell(0.0),
        "statistics\nmove": StageCell(1.0, batch_stats=True),
        "statistics\nstand still": StageCell(1.0, batch_stats=False),
    }
    marks = {
        "teacher": "is looked at",
        "source": "is looked at",
        "weak": "and",
        "strong": "views of unlabelled pictures",
        "average": "of the weights is kept",
    }
    axes, left = _paper(ROW + 0.5), 0.06
    for text, block in specimens.items():
        _draw(axes, block, left, 0.06, 0.48)
        left += 0.69 + _write(axes, left + 0.54, 0.06 + 0.5 * ROW, text, size=7.5)
    left = 0.06
    for mark, text in marks.items():
        left += _chip(axes, mark, left, ROW + 0.29) + 0.05
        left += 0.12 + _write(axes, left, ROW + 0.29, text, size=7.5)
    return _saved(axes, path)


def _paper(height: float) -> Axes:
    """Axes over a whole figure, in inches from its upper left corner."""
    axes = new_figure(height, layout="none").add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    axes.set_axis_off()
    return axes


def _draw(axes: Axes, block: StageCell, left: float, top: float, width: float) -> None:
    def fill(x: float, y: float, w: float, h: float, colour: str) -> None:
        axes.add_patch(Rectangle((x, y), w, h, color=colour, linewidth=0))

    full = block.share == 1 and not block.partial
    fill(left, top, width, ROW, BLUE if full else PALE if block.share else STILL)
    if block.partial:
        count = max(1, round(block.share * STRIPES))
        for stripe in (np.arange(count) + 0.5) * STRIPES // count:
            fill(left + stripe * width / STRIPES, top, 0.8 * width / STRIPES, 0.35 * ROW, BLUE)
    elif not full:
        fill(left, top, block.share * width, 0.35 * ROW, BLUE)
    ink = "white" if full else INK if block.share else GREY
    # Below what is filled, above the line of the statistics.
    place = top + ROW * (0.57 if block.share and not full else 0.45)
    size = _fitting(7.5, block.caption, width - 0.04)
    _write(axes, left + width / 2, place, block.caption, size=size, ha="center", color=ink)
    if block.batch_stats is not None:
        x = np.linspace(0, 1, 33)
        height = 0.028 * np.sin(4 * np.pi * x) if block.batch_stats else 0 * x
        axes.plot(left + width - 0.27 + 0.22 * x, top + ROW - 0.06 + height, color=ink, linewidth=1.1)


def _chip(axes: Axes, mark: str, left: float, middle: float) -> float:
    """Draw a mark and return its width."""
    width = 0.062 * len(mark) + 0.1
    shape = "round,pad=0,rounding_size=0.06"
    axes.add_patch(FancyBboxPatch((left, middle - 0.09), width, 0.18, boxstyle=shape, color=BADGES[mark], linewidth=0))
    _write(axes, left + width / 2, middle, mark, size=7.5, ha="center")
    return width


def _write(axes: Axes, x: float, y: float, text: str, *, size: float, **look) -> float:
    """Writes text and returns its width."""
    written = axes.text(x, y, text, fontsize=size, va="center_baseline", **{"color": INK} | look)
    return written.get_window_extent().width / DPI


def _fitting(size: float, text: str, width: float) -> float:
    """The size, or less where text of that size is wider than so many inches."""
    return min(size, 72 * width / (0.64 * max(1, len(text))))


def _percent(share: float) -> str:
    return "100 %" if share >= 0.995 else f"{100 * share:.3g} %"


def _saved(axes: Axes, path: str | Path) -> Path:
    """Writes the picture in 64 colours, which is all that its few shades need, at a third of the bytes."""
    path = save(axes.figure, path)
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(64, dither=Image.Dither.NONE)
    small.save(path, optimize=True)
    return path
