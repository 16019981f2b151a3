"""What the figures share: size, colours, shortened names, and writing the PNG.

Only `Figure` objects are used, never pyplot, so drawing leaves no global state behind.
"""

from pathlib import Path

from matplotlib.figure import Figure

WIDTH, DPI = 8.0, 150  # inches and dots per inch: sharp when shown 800 pixels wide
# Okabe and Ito's colours without yellow, which is too pale for lines on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
BLUE, ORANGE, GREY = COLORS[0], COLORS[1], "#888888"


def new_figure(height: float, layout: str = "constrained") -> Figure:
    """An empty figure, `WIDTH` by `height` inches; `layout` "compressed" suits square panels."""
    return Figure(figsize=(WIDTH, height), dpi=DPI, layout=layout)


def save(figure: Figure, path: str | Path) -> Path:
    """Write `figure` as PNG, making the folders above `path`; returns `path`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=DPI, facecolor="white")
    return path


def draw_message(text: str, path: str | Path) -> Path:
    """Write a PNG that only says `text`, for a figure with nothing to draw; returns `path`."""
    figure = new_figure(1.5)
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=13)
    return save(figure, path)


def short(name, limit: int) -> str:
    """`name` cut to `limit` characters, its dollars kept from starting a formula.

    The cut is made in the middle, since the ends of long class names tell them apart.
    """
    name = str(name)
    if len(name) > limit:
        tail = limit // 3
        name = f"{name[: limit - tail - 1].rstrip()}…{name[-tail:].lstrip()}"
    return name.replace("$", r"\$")
