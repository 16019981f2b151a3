"""Figures of the report. Each function writes one PNG, 8 inches wide, and returns its path."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.ticker import MaxNLocator, PercentFormatter

from tljax.report import tables
from tljax.report.ranking import worst_first
from tljax.report.style import (
    BLUE,
    COLORS,
    DPI,
    GREY,
    ORANGE,
    WIDTH,
    draw_message,
    new_figure,
    note_missing_classes,
    save_figure,
    shorten,
)
from tljax.tasks.task import Metric


def draw_curves(
    history: list[dict],
    path: str | Path,
    score: Metric = Metric("accuracy"),  # noqa: B008 - immutable
    train_metric: str = "accuracy",
) -> Path:
    """Draw loss and score of training and validation against epochs, with the phases and the best epoch marked.

    Args:
      history: one row per validation round; `epoch` counts over the whole run.
      path: of the PNG.
      score: the metric that the best epoch was selected by.
      train_metric: key of the training metric.

    Returns:
      `path`.

    Raises:
      ValueError: `history` is empty.
    """
    if not history:
        raise ValueError("history holds no rows")
    figure = new_figure(3.8)
    loss_axes, score_axes = figure.subplots(1, 2)
    # The training metric may differ from the validation metric, so the legend names it then.
    metric_name = train_metric.replace("_", " ").replace("iou", "IoU")
    training = "training" if train_metric == score.name else f"training ({metric_name})"
    _draw_curve(loss_axes, history, {"train": "loss", "valid": "loss"}, "training")
    _draw_curve(score_axes, history, {"train": train_metric, "valid": score.name}, training)
    loss_axes.set_ylabel("loss")
    score_axes.set_ylabel(score.label)
    score_axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    handles = score_axes.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False)
    return save_figure(figure, path)


def _draw_curve(axes: Axes, history: list[dict], keys: Mapping[str, str], training: str) -> None:
    """Draw one metric of both splits; `keys` is {split: key}, `training` the label of the training curve."""
    epochs = [row["epoch"] for row in history]
    marker = "o" if len(history) <= 30 else None
    for split, label, color in (("train", training, BLUE), ("valid", "validation", ORANGE)):
        values = [_value(row, split, keys[split]) for row in history]
        axes.plot(epochs, values, color=color, marker=marker, markersize=4, label=label)
    best = next((row for row in reversed(history) if row.get("best")), None)
    if best:
        label = f"best on validation (epoch {best['epoch']:g})"
        style = {"marker": "*", "s": 160, "color": ORANGE, "edgecolor": "black", "zorder": 3}
        axes.scatter(best["epoch"], _value(best, "valid", keys["valid"]), label=label, **style)
    axes.set(xlabel="epoch", xlim=(0, 1.04 * max(epochs) or 1))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.grid(alpha=0.3)
    _mark_phases(axes, history)


def _mark_phases(axes: Axes, history: list[dict]) -> None:
    """Draw a line where a phase starts, and its name above the axes."""
    starts = [(0.0, history[0]["phase"])]
    for before, after in pairwise(history):
        if after["phase"] != before["phase"]:
            starts.append((before["epoch"], after["phase"]))
            axes.axvline(before["epoch"], color=GREY, linestyle="--", linewidth=1)
    point = axes.get_xlim()[1] / 220  # epochs per typographic point; a panel is 220 points wide
    ends = [start for start, _ in starts[1:]] + [math.inf]
    widths = [end - start for (start, _), end in zip(starts, ends, strict=True)]
    name_widths = [(5 * len(name) + 6) * point for _, name in starts]
    crowded = any(width < name_width for width, name_width in zip(widths, name_widths, strict=True))
    style = {"fontsize": 8, "rotation": 45 if crowded else 0, "rotation_mode": "anchor"}
    x = -math.inf
    for start, name in starts:
        x = max(start, x + 11 * point)
        axes.text(x, 1.02, shorten(name, 20), transform=axes.get_xaxis_transform(), **style)


def draw_confusion(matrix, classes: Sequence[str], path: str | Path) -> Path:
    """Draw a confusion matrix, colored by the share of each row; with up to 25 classes, the counts are written.

    Args:
      matrix: [K, K], counts; rows are true classes, columns predicted classes.
      classes: K class names.
      path: of the PNG.

    Returns:
      `path`.

    Raises:
      ValueError: the shape is not [K, K].
    """
    matrix = np.asarray(matrix)
    count = len(classes)
    if not count or matrix.shape != (count, count):
        raise ValueError(f"confusion matrix {matrix.shape} does not fit {count} classes")
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros(matrix.shape), where=totals > 0)
    few = count <= 25

    names = [shorten(name, 20 if count <= 10 else 16) for name in classes]
    font_size = 10 if count <= 10 else 8 if few else 7
    name_width = 0.6 * font_size * max(map(len, names))  # points
    width = min(2.4 + 0.35 * count, WIDTH - 1.4 - name_width / 72)  # of the matrix, in inches
    cell = 72 * width / count  # points
    step = math.ceil((font_size + 1) / cell)
    rotation = 0 if name_width < step * cell else 45 if few else 90
    below = name_width * math.sin(math.radians(rotation)) + 40  # names and title under the matrix, in points

    figure = new_figure(width + below / 72, "compressed")
    axes = figure.subplots()
    # Without counts, rare confusions must be visible by color alone, so small shares are amplified.
    norm = PowerNorm(1.0 if few else 0.5, vmin=0, vmax=1)
    image = axes.imshow(shares, cmap="Blues", norm=norm)
    bar = figure.colorbar(image, ax=axes, format=PercentFormatter(1.0), fraction=0.05, pad=0.02)
    bar.set_label("share of the true class")
    anchor: dict[str, Any] = {"ha": "right", "rotation_mode": "anchor"} if rotation == 45 else {}
    axes.set_xticks(range(0, count, step), names[::step], size=font_size, rotation=rotation, **anchor)
    axes.set_yticks(range(0, count, step), names[::step], size=font_size)
    note = "" if step == 1 else f" (one class in {step} is named)"
    axes.set(xlabel="predicted" + note, ylabel="true")
    if few:
        _write_counts(axes, matrix, shares, min(12.0, 1.45 * cell / max(2, len(str(matrix.max())))))
    return save_figure(figure, path)


def _write_counts(axes: Axes, matrix: np.ndarray, shares: np.ndarray, font_size: float) -> None:
    for (row, column), value in np.ndenumerate(matrix):
        color = "white" if shares[row, column] > 0.5 else "black" if value else GREY
        axes.text(column, row, value, ha="center", va="center", color=color, fontsize=font_size)


def draw_roc(labels, probabilities, classes: Sequence[str], path: str | Path) -> Path:
    """Draw one-vs-rest ROC curves, with the upper left corner enlarged if they reach it.

    Up to 10 classes get one color and an AUC each; more are drawn as thin grey lines under their macro average.
    Classes without both positive and negative images have no curve and are listed below the figure.

    Args:
      labels: [N], class indices.
      probabilities: [N, K].
      classes: K class names.
      path: of the PNG.

    Returns:
      `path`.

    Raises:
      ValueError: shapes do not match.
    """
    from sklearn.metrics import auc, roc_curve

    labels, probabilities = _check_predictions(labels, probabilities, classes)
    curves = {}
    for index in range(len(classes)):
        positive = labels == index
        if positive.any() and not positive.all():
            curves[index] = roc_curve(positive, probabilities[:, index])[:2]
    if not curves:
        return draw_message("No ROC curve: the labels hold fewer than two classes.", path)

    areas = {index: auc(*curve) for index, curve in curves.items()}
    figure = new_figure(4.2, "compressed")
    # The curves of a weak model do not reach the corner: enlarging it would show an empty panel.
    panels = figure.subplots(1, 2 if np.mean(list(areas.values())) > 0.9 else 1, squeeze=False)[0]
    for axes in panels:
        _draw_roc_curves(axes, curves, areas, classes)
    panels[0].set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), title="one class against the rest")
    if len(panels) == 2:
        panels[1].set(xlim=(-0.004, 0.2), ylim=(0.8, 1.004), title="upper left corner")
    position = {"loc": "lower right"} if len(panels) == 2 else {"bbox_to_anchor": (1.02, 1)}
    panels[0].legend(title="AUC", fontsize=8, title_fontsize=8, **position)
    note_missing_classes(figure, [name for index, name in enumerate(classes) if index not in curves])
    return save_figure(figure, path)


def _draw_roc_curves(
    axes: Axes, curves: Mapping[int, tuple], areas: Mapping[int, float], classes: Sequence[str]
) -> None:
    """Draw ROC curves {class index: (false positive rates, true positive rates)} and the diagonal."""
    many = len(classes) > 10
    for index, curve in curves.items():
        if many:
            axes.plot(*curve, color="#BBBBBB", linewidth=0.6)
            continue
        style: dict[str, Any] = {"color": COLORS[index % len(COLORS)], "linestyle": ("-", "--")[index // len(COLORS)]}
        axes.plot(*curve, label=f"{shorten(classes[index], 16)}  {areas[index]:.3f}", **style)
    if many:
        grid = np.linspace(0, 1, 1001)
        mean = np.mean([np.interp(grid, *curve) for curve in curves.values()], axis=0)
        label = f"macro average of {len(curves)}  {np.mean(list(areas.values())):.3f}"
        axes.plot([0, *grid], [0, *mean], color=BLUE, linewidth=2.5, label=label)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    axes.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
    axes.grid(alpha=0.3)


def draw_worst(images, labels, probabilities, classes, path: str | Path, count: int = 24) -> Path:
    """Draw a grid of wrongly classified images, in the order of `worst_first`.

    Args:
      images: uint8 [N, H, W, 1 or 3].
      labels: [N], class indices.
      probabilities: [N, K].
      classes: K class names.
      path: of the PNG.
      count: maximum number of images.

    Returns:
      `path`.

    Raises:
      ValueError: shapes or types do not match.
    """
    labels, probabilities = _check_predictions(labels, probabilities, classes)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(f"images {images.dtype} {images.shape} are not uint8 [N, H, W, 1 or 3]")
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} images do not fit {len(labels)} labels")
    worst = worst_first(labels, probabilities)[:count]
    if not worst.size:
        return draw_message(f"All {len(labels):,} images are classified correctly.", path)

    predicted = probabilities.argmax(axis=1)
    pairs = [(shorten(classes[labels[i]], 14), shorten(classes[predicted[i]], 14)) for i in worst]
    longest = max(len(name) for pair in pairs for name in pair)
    columns = 6 if longest <= 11 else 5
    separator = " " if longest <= 4 else "\n"
    panels = _title_panels(len(worst), columns, 0.22 if separator == " " else 0.36)
    height, width = images.shape[1:3]
    interpolation = "nearest" if max(height, width) < WIDTH * DPI / columns else "auto"
    for axes, index, (true_name, predicted_name) in zip(panels, worst, pairs, strict=False):
        axes.imshow(np.broadcast_to(images[index], (height, width, 3)), interpolation=interpolation)
        title = f"{true_name}{separator}→ {predicted_name} {probabilities[index].max():.2f}"
        axes.set_title(title, fontsize=8 if columns == 6 else 7.5, pad=3)
    return save_figure(panels[0].figure, path)


def _title_panels(count: int, columns: int, title_height: float) -> np.ndarray:
    """Return at least `count` square panels of a new figure, each with room for a title, in inches."""
    rows = math.ceil(count / columns)
    # Positions are computed here: matplotlib's layout of two dozen titled panels takes most of a second.
    cell = 0.94 * WIDTH / columns  # inches
    height = rows * (cell + title_height) + 0.05
    margins = {"left": 0.01, "right": 0.99, "bottom": 0.05 / height, "top": 1 - title_height / height}
    spaces = {"wspace": 0.04, "hspace": title_height / cell}
    figure = new_figure(height, layout="none")
    panels = figure.subplots(rows, columns, squeeze=False, gridspec_kw=margins | spaces).ravel()
    for axes in panels:
        axes.set_axis_off()
    return panels


def draw_sweep(rows: list[dict], path: str | Path) -> Path:
    """Draw validation and test accuracy of each row of `tables.summarise`, 95 % intervals as error bars.

    Args:
      rows: of `tables.summarise`.
      path: of the PNG.

    Returns:
      `path`.

    Raises:
      ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("the comparison holds no rows")
    columns = tables.varying_fields(rows)
    labels = [", ".join(str(row["settings"].get(name)) for name in columns) for row in rows]
    figure = new_figure(1.2 + 0.55 * len(rows))
    axes = figure.subplots()
    bars = (("valid", "validation", "#9ECAE9", -0.2), ("test", "test", BLUE, 0.2))
    for split, name, color, offset in bars:
        positions = np.arange(len(rows)) + offset
        means, half_widths = np.transpose([row[split] for row in rows]).astype(float) * 100
        axes.barh(positions, means, 0.38, xerr=half_widths, capsize=3, color=color, label=name)
        for position, row in zip(positions, rows, strict=True):
            text = axes.text(1.01, position, tables.percent(row[split]), va="center", fontsize=8)
            text.set_transform(axes.get_yaxis_transform())
    axes.set_yticks(range(len(rows)), [shorten(label, 40) for label in labels])
    axes.set(xlabel="accuracy, %", xlim=(0, 100), ylim=(len(rows) - 0.5, -0.5))
    axes.set_title(shorten(", ".join(tables.headers(columns)), 60), loc="left", fontsize=9)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper right", ncols=2, frameon=False)
    return save_figure(figure, path)


def _value(row: dict, split: str, key: str) -> float:
    """Return a metric of a validation round; NaN where it is missing."""
    value = (row.get(split) or {}).get(key)
    return math.nan if value is None else value


def _check_predictions(labels, probabilities, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return labels [N] and probabilities [N, K] as arrays, or raise a ValueError if the shapes do not match."""
    labels = np.asarray(labels)
    probabilities = np.asarray(probabilities)
    if labels.ndim != 1 or probabilities.shape != (len(labels), len(classes)):
        shapes = f"labels {labels.shape} and probabilities {probabilities.shape}"
        raise ValueError(f"{shapes} do not fit {len(classes)} classes")
    return labels, probabilities
