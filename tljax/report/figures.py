"""Figures of the report. Each function writes one PNG, 8 inches wide, and returns its path."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.ticker import MaxNLocator, PercentFormatter

from tljax.report import tables
from tljax.report.style import BLUE, COLORS, DPI, GREY, ORANGE, WIDTH, draw_message, new_figure, save, short


def draw_curves(
    history: list[dict],
    path: str | Path,
    score: tuple[str, str] = ("accuracy", "accuracy"),
    train_metric: str = "accuracy",
) -> Path:
    """Loss and score of training and validation against epochs, phases and best epoch marked.

    `history` holds one row per validation round, `epoch` counting over the whole run; `score` is the
    key and the name of what the best was chosen by, `seen` the key of what training showed. Raises
    ValueError when `history` is empty.
    """
    if not history:
        raise ValueError("history holds no rows")
    figure = new_figure(3.8)
    panels = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    best = next((row for row in reversed(history) if row.get("best")), None)
    marker = "o" if len(history) <= 30 else None
    key, name = score
    # Training may show another thing than what validation judges by.
    training = (
        "training" if train_metric == key else f"training ({train_metric.replace('_', ' ').replace('iou', 'IoU')})"
    )
    shown = (("loss", "loss", "loss", "training"), (key, train_metric, name, training))
    for axes, (key, train_metric, name, training) in zip(panels, shown, strict=True):
        for split, of, label, colour in (("train", train_metric, training, BLUE), ("valid", key, "validation", ORANGE)):
            values = [_number(row, split, of) for row in history]
            axes.plot(epochs, values, color=colour, marker=marker, markersize=4, label=label)
        if best:
            label = f"best on validation (epoch {best['epoch']:g})"
            look = {"marker": "*", "s": 160, "color": ORANGE, "edgecolor": "black", "zorder": 3}
            axes.scatter(best["epoch"], _number(best, "valid", key), label=label, **look)
        axes.set(xlabel="epoch", ylabel=name, xlim=(0, 1.04 * max(epochs) or 1))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        axes.grid(alpha=0.3)
        _mark_phases(axes, history)
    panels[1].yaxis.set_major_formatter(PercentFormatter(1.0))
    handles = panels[1].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False)
    return save(figure, path)


def _mark_phases(axes, history: list[dict]) -> None:
    """Draw a line where a phase starts, its name above the axes."""
    starts = [(0.0, history[0]["phase"])]
    for before, after in pairwise(history):
        if after["phase"] != before["phase"]:
            starts.append((before["epoch"], after["phase"]))
            axes.axvline(before["epoch"], color=GREY, linestyle="--", linewidth=1)
    point = axes.get_xlim()[1] / 220  # epochs per typographic point, a panel being 220 wide
    ends = [start for start, _ in starts[1:]] + [math.inf]
    rooms = [end - start for (start, _), end in zip(starts, ends, strict=True)]
    needs = [(5 * len(name) + 6) * point for _, name in starts]
    crowded = any(room < need for room, need in zip(rooms, needs, strict=True))
    look = {"fontsize": 8, "rotation": 45 if crowded else 0, "rotation_mode": "anchor"}
    place = -math.inf
    for start, name in starts:
        place = max(start, place + 11 * point)
        axes.text(place, 1.02, short(name, 20), transform=axes.get_xaxis_transform(), **look)


def draw_confusion(matrix, classes: list[str], path: str | Path) -> Path:
    """Confusion matrix [K, K] of counts (rows true, columns predicted), coloured by share of row.

    Counts stand in the cells up to 25 classes. Raises ValueError when the shape is not [K, K].
    """
    matrix, count = np.asarray(matrix), len(classes)
    if not count or matrix.shape != (count, count):
        raise ValueError(f"confusion matrix {matrix.shape} does not fit {count} classes")
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros(matrix.shape), where=totals > 0)
    few = count <= 25

    names = [short(name, 20 if count <= 10 else 16) for name in classes]
    size = 10 if count <= 10 else 8 if few else 7
    longest = 0.6 * size * max(map(len, names))  # points, as are cell and size
    width = min(2.4 + 0.35 * count, WIDTH - 1.4 - longest / 72)  # of the matrix, in inches
    cell = 72 * width / count
    step = math.ceil((size + 1) / cell)
    rotation = 0 if longest < step * cell else 45 if few else 90
    below = longest * math.sin(math.radians(rotation)) + 40  # names and title under the matrix

    figure = new_figure(width + below / 72, "compressed")
    axes = figure.subplots()
    # Without numbers the rare confusions must show in colour alone, so small shares are lifted.
    norm = PowerNorm(1.0 if few else 0.5, vmin=0, vmax=1)
    image = axes.imshow(shares, cmap="Blues", norm=norm)
    bar = figure.colorbar(image, ax=axes, format=PercentFormatter(1.0), fraction=0.05, pad=0.02)
    bar.set_label("share of the true class")
    anchor = {"ha": "right", "rotation_mode": "anchor"} if rotation == 45 else {}
    axes.set_xticks(range(0, count, step), names[::step], size=size, rotation=rotation, **anchor)
    axes.set_yticks(range(0, count, step), names[::step], size=size)
    note = "" if step == 1 else f" (one class in {step} is named)"
    axes.set(xlabel="predicted" + note, ylabel="true")
    if few:
        size = min(12.0, 1.45 * cell / max(2, len(str(matrix.max()))))
        for (row, column), value in np.ndenumerate(matrix):
            colour = "white" if shares[row, column] > 0.5 else "black" if value else GREY
            axes.text(column, row, value, ha="center", va="center", color=colour, fontsize=size)
    return save(figure, path)


def draw_roc(labels, probabilities, classes: list[str], path: str | Path) -> Path:
    """One-against-rest ROC curves, their upper left corner enlarged when they reach it.

    `labels` is [N] of class indices, `probabilities` [N, K]. Up to 10 classes each have a colour
    and an AUC; beyond, they are thin grey lines under their macro average. Classes without both
    positive and negative pictures are skipped and named. Raises ValueError on unfit shapes.
    """
    from sklearn.metrics import auc, roc_curve

    labels, probabilities = _scores(labels, probabilities, classes)
    found = {}
    for index in range(len(classes)):
        positive = labels == index
        if positive.any() and not positive.all():
            found[index] = roc_curve(positive, probabilities[:, index])[:2]
    if not found:
        return draw_message("No ROC curve: the labels hold fewer than two classes.", path)

    many = len(classes) > 10
    areas = {index: auc(*curve) for index, curve in found.items()}
    average = np.mean(list(areas.values()))
    figure = new_figure(4.2, "compressed")
    # Curves of a weak model never reach the corner: enlarging it would show an empty panel.
    panels = figure.subplots(1, 2 if average > 0.9 else 1, squeeze=False)[0]
    grid = np.linspace(0, 1, 1001)
    mean = np.mean([np.interp(grid, *curve) for curve in found.values()], axis=0)
    for axes in panels:
        for index, curve in found.items():
            if many:
                axes.plot(*curve, color="#BBBBBB", linewidth=0.6)
                continue
            colour, style = COLORS[index % len(COLORS)], ("-", "--")[index // len(COLORS)]
            label = f"{short(classes[index], 16)}  {areas[index]:.3f}"
            axes.plot(*curve, color=colour, linestyle=style, label=label)
        if many:
            label = f"macro average of {len(found)}  {average:.3f}"
            axes.plot([0, *grid], [0, *mean], color=BLUE, linewidth=2.5, label=label)
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
        axes.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
        axes.grid(alpha=0.3)
    panels[0].set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), title="one class against the rest")
    if len(panels) == 2:
        panels[1].set(xlim=(-0.004, 0.2), ylim=(0.8, 1.004), title="upper left corner")
    place = {"loc": "lower right"} if len(panels) == 2 else {"bbox_to_anchor": (1.02, 1)}
    panels[0].legend(title="AUC", fontsize=8, title_fontsize=8, **place)
    skipped = [short(name, 20) for index, name in enumerate(classes) if index not in found]
    if skipped:
        more = f" and {len(skipped) - 6} more" if len(skipped) > 6 else ""
        figure.supxlabel("not in the labels: " + ", ".join(skipped[:6]) + more, fontsize=9)
    return save(figure, path)


def draw_worst(images, labels, probabilities, classes, path: str | Path, count: int = 24) -> Path:
    """Sheet of the `count` wrongly classified pictures whose true class got least probability.

    `images` is uint8 [N, H, W, C] with C 1 or 3, `labels` [N], `probabilities` [N, K]. Raises
    ValueError on unfit shapes or types.
    """
    labels, probabilities = _scores(labels, probabilities, classes)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(f"images {images.dtype} {images.shape} are not uint8 [N, H, W, 1 or 3]")
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} images do not fit {len(labels)} labels")
    predicted = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    if not wrong.size:
        return draw_message(f"Nothing is wrong: all {len(labels):,} pictures are correct.", path)
    order = np.argsort(probabilities[wrong, labels[wrong]], kind="stable")
    worst = wrong[order][:count]

    pairs = [(short(classes[labels[i]], 14), short(classes[predicted[i]], 14)) for i in worst]
    longest = max(len(name) for pair in pairs for name in pair)
    columns = 6 if longest <= 11 else 5
    rows = math.ceil(len(worst) / columns)
    gap = " " if longest <= 4 else "\n"
    # Placed by hand: laying out two dozen titled panels takes matplotlib the better part of a second.
    cell, title = 0.94 * WIDTH / columns, 0.22 if gap == " " else 0.36  # inches
    height = rows * (cell + title) + 0.05
    figure = new_figure(height, layout="none")
    place = {"left": 0.01, "right": 0.99, "bottom": 0.05 / height, "top": 1 - title / height}
    grid = figure.subplots(rows, columns, squeeze=False, gridspec_kw=place | {"wspace": 0.04, "hspace": title / cell})
    grid = grid.ravel()
    for axes in grid:
        axes.set_axis_off()
    height, width = images.shape[1:3]
    method = "nearest" if max(height, width) < WIDTH * DPI / columns else "auto"
    for axes, index, (true, guess) in zip(grid, worst, pairs, strict=False):
        axes.imshow(np.broadcast_to(images[index], (height, width, 3)), interpolation=method)
        title = f"{true}{gap}→ {guess} {probabilities[index].max():.2f}"
        axes.set_title(title, fontsize=8 if columns == 6 else 7.5, pad=3)
    return save(figure, path)


def draw_sweep(rows: list[dict], path: str | Path) -> Path:
    """Validation and test accuracy of each row of `tables.summarise`, 95 % intervals as error bars.

    Raises ValueError when there are no rows.
    """
    if not rows:
        raise ValueError("the comparison holds no rows")
    columns = tables.varying_fields(rows)
    labels = [", ".join(str(row["settings"].get(name)) for name in columns) for row in rows]
    figure = new_figure(1.2 + 0.55 * len(rows))
    axes = figure.subplots()
    bars = (("valid", "validation", "#9ECAE9", -0.2), ("test", "test", BLUE, 0.2))
    for split, name, colour, shift in bars:
        places = np.arange(len(rows)) + shift
        means, widths = np.transpose([row[split] for row in rows]).astype(float) * 100
        axes.barh(places, means, 0.38, xerr=widths, capsize=3, color=colour, label=name)
        for place, row in zip(places, rows, strict=True):
            text = axes.text(1.01, place, tables.percent(row[split]), va="center", fontsize=8)
            text.set_transform(axes.get_yaxis_transform())
    axes.set_yticks(range(len(rows)), [short(label, 40) for label in labels])
    axes.set(xlabel="accuracy, %", xlim=(0, 100), ylim=(len(rows) - 0.5, -0.5))
    axes.set_title(short(", ".join(tables.headers(columns)), 60), loc="left", fontsize=9)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper right", ncols=2, frameon=False)
    return save(figure, path)


def _number(row: dict, split: str, key: str) -> float:
    value = (row.get(split) or {}).get(key)
    return math.nan if value is None else value


def _scores(labels, probabilities, classes):
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    if labels.ndim != 1 or probabilities.shape != (len(labels), len(classes)):
        shapes = f"labels {labels.shape} and probabilities {probabilities.shape}"
        raise ValueError(f"{shapes} do not fit {len(classes)} classes")
    return labels, probabilities
