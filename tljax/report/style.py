"""Shared style of the figures: size, colors, shortened names, and writing PNGs.

Only `Figure` objects are used, never pyplot, so drawing leaves no global state behind.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from matplotlib.figure import Figure

WIDTH = 8.0  # inches
DPI = 150  # sharp when shown 800 pixels wide
# The palette of Okabe and Ito without yellow, which is too pale for lines on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
BLUE = COLORS[0]
ORANGE = COLORS[1]
GREY = "#888888"


def new_figure(height: float, layout: str = "constrained") -> Figure:
    """Return an empty figure, `WIDTH` by `height` inches; `layout` "compressed" suits square panels."""
    return Figure(figsize=(WIDTH, height), dpi=DPI, layout=cast(Any, layout))  # its annotation lacks "none"


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write `figure` as PNG, creating the parent folders; return `path`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=DPI, facecolor="white")
    return path


def draw_message(text: str, path: str | Path) -> Path:
    """Write a PNG with only `text`, in place of a figure that has no data; return `path`."""
    figure = new_figure(1.5)
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=13)
    return save_figure(figure, path)


def note_missing_classes(figure: Figure, names: Sequence[str]) -> None:
    """Write below a figure which classes have no curve because the labels lack them, at most six by name."""
    if names:
        more = f" and {len(names) - 6} more" if len(names) > 6 else ""
        listed = ", ".join(shorten(name, 20) for name in names[:6])
        figure.supxlabel(f"not in the labels: {listed}{more}", fontsize=9)


def shorten(name, limit: int) -> str:
    """Shorten `name` to `limit` characters and escape its dollars, which would start a formula in matplotlib.

    Characters are removed from the middle, because long class names often differ only at the end.
    """
    name = str(name)
    if len(name) > limit:
        tail = limit // 3
        name = f"{name[: limit - tail - 1].rstrip()}…{name[-tail:].lstrip()}"
    return name.replace("$", r"\$")
