"""Grids of images with masks or boxes, and precision-recall curves; PNGs 8 inches wide, as in `figures`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import ArrayLike

from tljax.losses.pixelwise import IGNORED
from tljax.report.overlays import VOID, colorize, rgb
from tljax.report.style import (
    BLUE,
    COLORS,
    DPI,
    GREY,
    WIDTH,
    draw_message,
    new_figure,
    note_missing_classes,
    save_figure,
    shorten,
)

COLUMNS = 4
LABEL_WIDTH = 0.26  # inches, for the label left of a row
TITLE_HEIGHT = 0.28  # inches, for the column titles
GAP = 0.05  # inches between panels
LEGEND_LINE = 0.18  # inches per line of the legend
MAX_LEGEND_CLASSES = 24
MIN_SCORE = 0.3  # predicted boxes with a lower score are not drawn: they would hide the others
WRONG_COLOR = (213, 94, 0)


class Ranking(NamedTuple):
    """Which images a grid shows, and the number beside each.

    Attributes:
      order: image indices in the order of the panels.
      values: [N], a number for each image; NaN is shown as a dash.
      name: of the number.
      count: maximum number of images.
    """

    order: Sequence[int] | np.ndarray
    values: Sequence[float] | np.ndarray
    name: str
    count: int = 8


class Boxes(NamedTuple):
    """Boxes of images.

    Attributes:
      boxes: [N, K, 4], (y0, x0, y1, x1) in pixels of the images.
      labels: [N, K], class indices; negative for padding.
      scores: [N, K], printed at the boxes; None for true boxes.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None = None


def mask_grid(
    images: np.ndarray,
    truth: np.ndarray,
    predicted: np.ndarray,
    classes: Sequence[str],
    path: str | Path,
    ranking: Ranking,
) -> Path:
    """Draw one row for each image of a ranking: input, truth, prediction, and wrong pixels.

    Args:
      images: uint8 [N, H, W, 1 or 3].
      truth: uint8 [N, H, W], `IGNORED` for pixels that are not evaluated.
      predicted: uint8 [N, H, W].
      classes: class names; the legend lists the `MAX_LEGEND_CLASSES` most frequent classes that appear.
      path: of the PNG; it is returned.
      ranking: the rows.

    Raises:
      ValueError: shapes or types do not match.
    """
    if truth.shape != images.shape[:3] or predicted.shape != truth.shape:
        raise ValueError(f"truth {truth.shape} and predicted {predicted.shape} are not masks of images {images.shape}")
    indices = _select(images, ranking)
    if not len(indices):
        return draw_message("No images to show.", path)
    handles = _legend(np.concatenate([truth[indices].ravel(), predicted[indices].ravel()]), classes)
    figure, panels = _panels(len(indices), images.shape[1:3], handles, groups=1)
    for axes, title in zip(panels[0], ("input", "truth", "prediction", "wrong pixels"), strict=True):
        axes.set_title(title, fontsize=9, pad=4)
    for row, index in zip(panels, indices, strict=True):
        image = rgb(images[index])
        wrong = _wrong_pixels(image, truth[index], predicted[index])
        shown = (image, colorize(truth[index]), colorize(predicted[index]), wrong)
        for axes, pixels in zip(row, shown, strict=True):
            _show(axes, pixels)
        _label(row[0], ranking.name, float(ranking.values[index]))
    return save_figure(figure, path)


def box_grid(
    images: np.ndarray,
    truth: Boxes,
    predicted: Boxes,
    classes: Sequence[str],
    path: str | Path,
    ranking: Ranking,
) -> Path:
    """Draw the images of a ranking, two per row, each with its true and with its predicted boxes.

    Args:
      images: uint8 [N, H, W, 1 or 3].
      truth: true boxes.
      predicted: with scores; boxes with a score below `MIN_SCORE` are not drawn.
      classes: class names; the legend lists the `MAX_LEGEND_CLASSES` most frequent classes that appear.
      path: of the PNG; it is returned.
      ranking: the images.

    Raises:
      ValueError: shapes or types do not match.
    """
    _check_boxes(images, truth, predicted)
    indices = _select(images, ranking)
    if not len(indices):
        return draw_message("No images to show.", path)
    assert predicted.scores is not None
    shown_labels = np.where(predicted.scores >= MIN_SCORE, predicted.labels, -1)
    handles = _legend(np.concatenate([truth.labels[indices].ravel(), shown_labels[indices].ravel()]), classes)
    figure, panels = _panels(math.ceil(len(indices) / 2), images.shape[1:3], handles, groups=2)
    pairs = panels.reshape(-1, 2)
    for left, right in pairs[: min(2, len(indices))]:
        left.set_title("truth", fontsize=9, pad=4)
        right.set_title(f"prediction, score ≥ {MIN_SCORE}", fontsize=9, pad=4)
    for (left, right), index in zip(pairs, indices, strict=False):
        _draw_boxes(left, images[index], truth.boxes[index], truth.labels[index], None)
        _draw_boxes(right, images[index], predicted.boxes[index], shown_labels[index], predicted.scores[index])
        _label(left, ranking.name, float(ranking.values[index]))
    return save_figure(figure, path)


def draw_precision_recall(
    recall: Sequence[float], precision: Mapping[str, Sequence[float]], classes: Sequence[str], path: str | Path
) -> Path:
    """Draw precision against recall of every class at an IoU of 0.5; the legend has the mean precision (AP50).

    Args:
      recall: [R], recall values of the curves, evenly spaced from 0 to 1.
      precision: {class: [R]} for the classes that have a curve. Up to 10 classes get one color each; more are drawn as
        thin grey lines under their mean.
      classes: class names in order; those without a curve are listed below the figure.
      path: of the PNG.

    Returns:
      `path`.

    Raises:
      ValueError: a curve has another length than `recall`, or belongs to an unknown class.
    """
    unfit = [name for name, curve in precision.items() if name not in classes or len(curve) != len(recall)]
    if unfit:
        raise ValueError(f"the curve of {unfit[0]} fits neither {len(recall)} recall values nor the classes")
    curves = {name: np.asarray(precision[name], float) for name in classes if name in precision}
    if not curves:
        return draw_message("No precision-recall curve: no class has boxes.", path)
    many = len(curves) > 10
    figure = new_figure(4.2)
    axes = figure.subplots()
    for index, (name, curve) in enumerate(curves.items()):
        if many:
            axes.plot(recall, curve, color="#BBBBBB", linewidth=0.6)
            continue
        style: dict[str, Any] = {"color": COLORS[index % len(COLORS)], "linestyle": ("-", "--")[index // len(COLORS)]}
        axes.plot(recall, curve, label=f"{shorten(name, 24)}  {curve.mean():.3f}", **style)
    if many:
        mean = np.mean(list(curves.values()), axis=0)
        axes.plot(recall, mean, color=BLUE, linewidth=2.5, label=f"mean of {len(curves)}  {mean.mean():.3f}")
    axes.set(xlabel="recall", ylabel="precision", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", title="AP50", fontsize=8, title_fontsize=8, frameon=False)
    note_missing_classes(figure, [name for name in classes if name not in curves])
    return save_figure(figure, path)


def _wrong_pixels(image: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return a pale grey image [H, W, 3] with the wrongly classified pixels in `WRONG_COLOR`."""
    evaluated = truth != IGNORED
    wrong = evaluated & (truth != predicted)
    pale = 160 + image.mean(-1, keepdims=True) * 0.35
    return np.where(wrong[..., None], WRONG_COLOR, np.where(evaluated[..., None], pale, VOID)).astype(np.uint8)


def _check_boxes(images: np.ndarray, truth: Boxes, predicted: Boxes) -> None:
    """Raise a ValueError if the shapes of boxes, labels and scores do not match."""
    for boxes, labels, scores in (truth, predicted):
        per_box = [labels] if scores is None else [labels, scores]
        if len(boxes) != len(images) or any(boxes.shape != (*array.shape, 4) for array in per_box):
            raise ValueError(
                f"boxes {truth.boxes.shape} and {predicted.boxes.shape} with their labels and scores do not fit"
            )


def _select(images: np.ndarray, ranking: Ranking) -> np.ndarray:
    """Check the arguments that all grids have, and return the indices of the images that are shown."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(f"images {images.dtype} {images.shape} are not uint8 [N, H, W, 1 or 3]")
    if len(ranking.values) != len(images):
        raise ValueError(f"{len(ranking.values)} values do not fit {len(images)} images")
    return np.asarray(ranking.order, int)[: ranking.count]


def _legend(labels: np.ndarray, classes: Sequence[str]) -> list[Patch]:
    """Return a patch for each of the most frequent classes in `labels`, and for ignored pixels if there are any."""
    sizes = np.bincount(labels[(labels >= 0) & (labels != IGNORED)], minlength=1)
    present = np.flatnonzero(sizes)
    listed = np.sort(present[np.argsort(-sizes[present], kind="stable")][:MAX_LEGEND_CLASSES])
    handles = [_patch(colorize(index), shorten(classes[index], 24)) for index in listed]
    if (labels == IGNORED).any():
        handles.append(_patch(VOID, "ignored"))
    if len(listed) < len(present):
        handles.append(Patch(alpha=0, label=f"and {len(present) - len(listed)} rarer"))
    return handles


def _patch(color: ArrayLike, label: str) -> Patch:
    return Patch(facecolor=(np.array(color) / 255).tolist(), edgecolor=GREY, linewidth=0.5, label=label)


def _panels(rows: int, shape: tuple[int, int], handles: list[Patch], groups: int) -> tuple[Figure, np.ndarray]:
    """Return a figure with `rows` by `COLUMNS` panels for images of `shape` [H, W], over a legend.

    Each of the `groups` of columns has room for a label on its left.
    """
    panel_width = (WIDTH - groups * LABEL_WIDTH - COLUMNS * GAP) / COLUMNS
    panel_height = panel_width * shape[0] / shape[1]
    longest = max((len(str(handle.get_label())) for handle in handles), default=0)
    legend_columns = max(1, min(len(handles), int((WIDTH - 0.4) / (0.065 * longest + 0.5))))
    legend_height = LEGEND_LINE * math.ceil(len(handles) / legend_columns) + 0.15
    height = TITLE_HEIGHT + rows * (panel_height + GAP) + legend_height
    figure = new_figure(height, layout="none")
    panels = np.empty((rows, COLUMNS), object)
    # Positions are computed here: matplotlib's layout of dozens of panels takes most of a second.
    for row, column in np.ndindex(*panels.shape):
        left = LABEL_WIDTH * (1 + column * groups // COLUMNS) + column * (panel_width + GAP)
        bottom = height - TITLE_HEIGHT - (row + 1) * (panel_height + GAP) + GAP
        position = (left / WIDTH, bottom / height, panel_width / WIDTH, panel_height / height)
        axes = panels[row, column] = figure.add_axes(position)
        axes.set_axis_off()
    if handles:
        style = {"fontsize": 8, "frameon": False, "handlelength": 1.2, "handleheight": 1.0, "borderpad": 0}
        anchor = (0.5, 0.06 / height)
        figure.legend(handles=handles, loc="lower center", ncols=legend_columns, bbox_to_anchor=anchor, **style)
    return figure, panels


def _show(axes: Axes, image: np.ndarray) -> None:
    """Draw an image so that pixel i covers [i, i + 1]; a small image is not smoothed."""
    height, width = image.shape[:2]
    interpolation = "nearest" if max(height, width) < WIDTH * DPI / COLUMNS else "auto"
    axes.imshow(image, interpolation=interpolation, extent=(0, width, height, 0))


def _label(axes: Axes, name: str, value: float) -> None:
    """Write a name and a value at the left of a panel."""
    text = "–" if value is None or math.isnan(value) else f"{value:.2f}"
    style = {"rotation": 90, "ha": "right", "va": "center", "fontsize": 8}
    axes.text(-0.02, 0.5, f"{name} {text}", transform=axes.transAxes, **style)


def _draw_boxes(
    axes: Axes, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray | None
) -> None:
    """Draw an image and its boxes with a label that is not negative, the highest score on top."""
    _show(axes, rgb(image))
    order = range(len(labels)) if scores is None else np.argsort(scores, kind="stable")
    for i in order:
        if labels[i] < 0:
            continue
        y0, x0, y1, x1 = boxes[i]
        # The white line underneath makes dark boxes visible on dark images.
        for color, width in (("white", 2.4), (colorize(labels[i]) / 255, 1.2)):
            axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=color, linewidth=width))
        if scores is not None:
            background = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6}
            text = f"{scores[i]:.2f}"
            axes.text(max(x0, 0), max(y0, 0), text, fontsize=6, va="top", bbox=background, clip_on=True)
