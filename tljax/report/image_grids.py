"""Sheets of pictures with their masks or boxes, and precision-recall curves; PNGs 8 inches wide, as in `figures`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from tljax.losses.pixelwise import IGNORED
from tljax.report.overlays import VOID, colorize, rgb
from tljax.report.style import BLUE, COLORS, DPI, GREY, WIDTH, draw_message, new_figure, save, short

COLUMNS = 4
LEFT, TOP, GAP = 0.26, 0.28, 0.05  # inches: row labels, column titles, between panels
LINE = 0.18  # inches of a legend's line
MOST_NAMED = 24
# Less certain boxes are left out of sheets, where they would hide the others.
MIN_SCORE = 0.3
WRONG = (213, 94, 0)


def mask_grid(
    images: np.ndarray,
    truth: np.ndarray,
    predicted: np.ndarray,
    classes: Sequence[str],
    path: str | Path,
    order: Sequence[int],
    numbers: Sequence[float],
    count: int = 8,
    name: str = "IoU",
) -> Path:
    """A row for each of the first `count` pictures of `order`: input, truth, prediction, and where they differ.

    Args:
      images: uint8 [N, H, W, 1 or 3].
      truth: uint8 [N, H, W], `IGNORED` where a pixel does not count.
      predicted: uint8 [N, H, W].
      classes: their names; a legend has those that appear, the commonest `MOST_NAMED` of them.
      path: of the PNG.
      order: indices of pictures, the worst first.
      numbers: [N], printed beside each picture; NaN: a dash.
      count: of rows.
      name: of the number.

    Raises:
      ValueError: unfit shapes or types.
    """
    if truth.shape != images.shape[:3] or predicted.shape != truth.shape:
        raise ValueError(f"truth {truth.shape} and predicted {predicted.shape} are not masks of images {images.shape}")
    rows = _rows(images, order, numbers, count)
    if not len(rows):
        return draw_message("No pictures to show.", path)
    handles = _legend(np.concatenate([truth[rows].ravel(), predicted[rows].ravel()]), classes)
    figure, panels = _panels(len(rows), images.shape[1:3], handles, groups=1)
    for axes, title in zip(panels[0], ("input", "truth", "prediction", "wrong pixels"), strict=True):
        axes.set_title(title, fontsize=9, pad=4)
    for line, index in zip(panels, rows, strict=True):
        image, known = rgb(images[index]), truth[index] != IGNORED
        wrong = known & (truth[index] != predicted[index])
        # A pale grey picture, on which the mistakes stand out.
        pale = 160 + image.mean(-1, keepdims=True) * 0.35
        differ = np.where(wrong[..., None], WRONG, np.where(known[..., None], pale, VOID)).astype(np.uint8)
        shown = (image, colorize(truth[index]), colorize(predicted[index]), differ)
        for axes, picture in zip(line, shown, strict=True):
            _show(axes, picture)
        _label(line[0], name, numbers[index])
    return save(figure, path)


def box_grid(
    images: np.ndarray,
    truth_boxes: np.ndarray,
    truth_labels: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    path: str | Path,
    order: Sequence[int],
    numbers: Sequence[float],
    count: int = 8,
    name: str = "AP",
) -> Path:
    """The first `count` pictures of `order`, two in a row, each with its true boxes and with the predicted ones.

    Args:
      images: uint8 [N, H, W, 1 or 3].
      truth_boxes: [N, M, 4], in pixels of the pictures.
      truth_labels: [N, M], negative for padding.
      boxes: [N, K, 4]; those whose score is below `MIN_SCORE` are left out.
      scores: [N, K], printed at the boxes.
      labels: [N, K], negative for padding.
      classes: their names; a legend has those that appear, the commonest `MOST_NAMED` of them.
      path: of the PNG.
      order: indices of pictures, the worst first.
      numbers: [N], printed beside each picture; NaN: a dash.
      count: of pictures.
      name: of the number.

    Raises:
      ValueError: unfit shapes or types.
    """
    shapes = [truth_boxes.shape, (*truth_labels.shape, 4), boxes.shape, (*labels.shape, 4), (*scores.shape, 4)]
    if shapes[0] != shapes[1] or len(set(shapes[2:])) > 1 or {len(truth_boxes), len(boxes)} != {len(images)}:
        raise ValueError(f"boxes {truth_boxes.shape} and {boxes.shape} with their labels and scores do not fit")
    rows = _rows(images, order, numbers, count)
    if not len(rows):
        return draw_message("No pictures to show.", path)
    drawn = np.where(scores >= MIN_SCORE, labels, -1)
    handles = _legend(np.concatenate([truth_labels[rows].ravel(), drawn[rows].ravel()]), classes)
    figure, panels = _panels(math.ceil(len(rows) / 2), images.shape[1:3], handles, groups=2)
    pairs = panels.reshape(-1, 2)
    for pair in pairs[: min(2, len(rows))]:
        pair[0].set_title("truth", fontsize=9, pad=4)
        pair[1].set_title(f"prediction, score ≥ {MIN_SCORE}", fontsize=9, pad=4)
    for (left, right), index in zip(pairs, rows, strict=False):
        for axes in (left, right):
            _show(axes, rgb(images[index]))
        _draw_boxes(left, truth_boxes[index], truth_labels[index], None)
        _draw_boxes(right, boxes[index], drawn[index], scores[index])
        _label(left, name, numbers[index])
    return save(figure, path)


def draw_precision_recall(
    recall: Sequence[float], precision: Mapping[str, Sequence[float]], classes: Sequence[str], path: str | Path
) -> Path:
    """Precision against recall of every class at an IoU of 0.5, with the mean precision, which is the AP50.

    Args:
      recall: [R], the places of the curves, evenly from 0 to 1.
      precision: of each class that has a curve, [R]. Up to 10 classes each have a colour; beyond, they are thin grey
        lines under their mean.
      classes: names, in their order; those without a curve are named below.
      path: of the PNG.

    Raises:
      ValueError: a curve that does not fit `recall`, or of an unknown class.
    """
    unfit = [kind for kind, curve in precision.items() if kind not in classes or len(curve) != len(recall)]
    if unfit:
        raise ValueError(f"the curve of {unfit[0]} fits neither {len(recall)} places nor the classes")
    found = {kind: np.asarray(precision[kind], float) for kind in classes if kind in precision}
    if not found:
        return draw_message("No precision-recall curve: no class has boxes.", path)
    many = len(found) > 10
    figure = new_figure(4.2)
    axes = figure.subplots()
    for index, (kind, curve) in enumerate(found.items()):
        if many:
            axes.plot(recall, curve, color="#BBBBBB", linewidth=0.6)
            continue
        look = {"color": COLORS[index % len(COLORS)], "linestyle": ("-", "--")[index // len(COLORS)]}
        axes.plot(recall, curve, label=f"{short(kind, 24)}  {curve.mean():.3f}", **look)
    if many:
        mean = np.mean(list(found.values()), axis=0)
        axes.plot(recall, mean, color=BLUE, linewidth=2.5, label=f"mean of {len(found)}  {mean.mean():.3f}")
    axes.set(xlabel="recall", ylabel="precision", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", title="AP50", fontsize=8, title_fontsize=8, frameon=False)
    skipped = [short(kind, 20) for kind in classes if kind not in found]
    if skipped:
        more = f" and {len(skipped) - 6} more" if len(skipped) > 6 else ""
        figure.supxlabel("not in the labels: " + ", ".join(skipped[:6]) + more, fontsize=9)
    return save(figure, path)


def _rows(images: np.ndarray, order: Sequence[int], numbers: Sequence[float], count: int) -> np.ndarray:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(f"images {images.dtype} {images.shape} are not uint8 [N, H, W, 1 or 3]")
    if len(numbers) != len(images):
        raise ValueError(f"{len(numbers)} numbers do not fit {len(images)} images")
    return np.asarray(order, int)[:count]


def _legend(kinds: np.ndarray, classes: Sequence[str]) -> list[Patch]:
    """A patch of each class that appears, the rarest left out where there are too many; and of what does not count."""
    sizes = np.bincount(kinds[(kinds >= 0) & (kinds != IGNORED)], minlength=1)
    there = np.flatnonzero(sizes)
    named = np.sort(there[np.argsort(-sizes[there], kind="stable")][:MOST_NAMED])
    handles = [_patch(colorize(kind), short(classes[kind], 24)) for kind in named]
    if (kinds == IGNORED).any():
        handles.append(_patch(VOID, "does not count"))
    if len(named) < len(there):
        handles.append(Patch(alpha=0, label=f"and {len(there) - len(named)} rarer"))
    return handles


def _patch(colour: Sequence[int], label: str) -> Patch:
    return Patch(facecolor=np.array(colour) / 255, edgecolor=GREY, linewidth=0.5, label=label)


def _panels(rows: int, shape: tuple[int, int], handles: list[Patch], groups: int) -> tuple[Figure, np.ndarray]:
    """A figure of rows by `COLUMNS` panels for pictures of this shape [H, W], over a legend.

    Left of each of the groups of columns there is room for a label.
    """
    cell = (WIDTH - groups * LEFT - COLUMNS * GAP) / COLUMNS
    tall = cell * shape[0] / shape[1]
    longest = max((len(handle.get_label()) for handle in handles), default=0)
    columns = max(1, min(len(handles), int((WIDTH - 0.4) / (0.065 * longest + 0.5))))
    below = LINE * math.ceil(len(handles) / columns) + 0.15
    height = TOP + rows * (tall + GAP) + below
    figure, panels = new_figure(height, layout="none"), np.empty((rows, COLUMNS), object)
    # Placed by hand: laying out dozens of panels takes matplotlib the better part of a second.
    for row, column in np.ndindex(*panels.shape):
        left = LEFT * (1 + column * groups // COLUMNS) + column * (cell + GAP)
        bottom = height - TOP - (row + 1) * (tall + GAP) + GAP
        panels[row, column] = figure.add_axes((left / WIDTH, bottom / height, cell / WIDTH, tall / height))
        panels[row, column].set_axis_off()
    if handles:
        look = {"fontsize": 8, "frameon": False, "handlelength": 1.2, "handleheight": 1.0, "borderpad": 0}
        figure.legend(handles=handles, loc="lower center", ncols=columns, bbox_to_anchor=(0.5, 0.06 / height), **look)
    return figure, panels


def _show(axes, picture: np.ndarray) -> None:
    """The picture in its own pixels, pixel i covering [i, i + 1]; a small one is not smoothed."""
    height, width = picture.shape[:2]
    method = "nearest" if max(height, width) < WIDTH * DPI / COLUMNS else "auto"
    axes.imshow(picture, interpolation=method, extent=(0, width, height, 0))


def _label(axes, name: str, value: float) -> None:
    """Name and number at the left of a row."""
    text = "–" if value is None or math.isnan(value) else f"{value:.2f}"
    where = {"rotation": 90, "ha": "right", "va": "center", "fontsize": 8}
    axes.text(-0.02, 0.5, f"{name} {text}", transform=axes.transAxes, **where)


def _draw_boxes(axes, boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray | None) -> None:
    """Those whose label is not negative; the best on top."""
    order = range(len(labels)) if scores is None else np.argsort(scores, kind="stable")
    for i in order:
        if labels[i] < 0:
            continue
        y0, x0, y1, x1 = boxes[i]
        colour = colorize(labels[i]) / 255
        # The pale line underneath shows dark boxes on dark pictures.
        for edge, wide in (("white", 2.4), (colour, 1.2)):
            axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=edge, linewidth=wide))
        if scores is not None:
            tag = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6}
            axes.text(max(x0, 0), max(y0, 0), f"{scores[i]:.2f}", fontsize=6, va="top", bbox=tag, clip_on=True)
