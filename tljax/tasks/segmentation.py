"""Segmentation: a class for each pixel, judged on the picture's own grid."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

from tljax.data import Split
from tljax.data.sources.images import resize
from tljax.losses.pixelwise import IGNORED, resize_logits
from tljax.tasks.task import Arrays, Predictions, PredictionSet, Task

# How far a boundary may lie from the true one, as a share of the diagonal (Perazzi et al. 2016, section 5.1).
TOLERANCE = 0.008
BITS = 32


def train_metric(outputs: Mapping[str, Any], batch: Arrays) -> jax.Array:
    """Share of each picture's pixels that are right, of those that count, [B]; 1 where none does: nothing is wrong."""
    labels = batch["label"]
    counted = labels != IGNORED
    classes = resize_logits(outputs["logits"], labels.shape[1:]).argmax(-1)
    wrong = (counted & (classes != labels)).sum((1, 2))
    return 1 - wrong / jnp.maximum(counted.sum((1, 2)), 1)


def predict(outputs: Mapping[str, Any], batch: Arrays) -> dict[str, jax.Array]:
    """Classes of the pixels, and what is counted where they are known.

    Args:
      outputs: `logits` [B, h, w, C].
      batch: `label` [B, H, W] or `image` [B, H, W, c], on whose grid the logits are judged; with neither, on theirs.

    Returns:
      classes: uint8 [B, H, W], the likeliest.
      And where there is `label`:
      confusion: int32 [B, C, C], pixels of each true class (rows) and predicted class.
      boundary: int32 [B, C, 4], from `boundaries`.
      losses: float32 [B], the sum of the cross-entropy of the pixels that count, in nats.
      counted: int32 [B], how many these are.
    """
    labels = batch.get("label")
    grid = next(x for x in (labels, batch.get("image"), outputs["logits"]) if x is not None)
    logits = resize_logits(outputs["logits"], grid.shape[1:3])
    classes = logits.argmax(-1).astype(jnp.uint8)
    if labels is None:
        return {"classes": classes}
    counted = labels != IGNORED
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(counted, labels, 0).astype(jnp.int32))
    return {
        "classes": classes,
        "confusion": confusion(labels, classes, logits.shape[-1]),
        "boundary": boundaries(labels, classes, logits.shape[-1]),
        "losses": jnp.where(counted, losses, 0).sum((1, 2)),
        "counted": counted.sum((1, 2), dtype=jnp.int32),
    }


def confusion(labels: jax.Array, classes: jax.Array, count: int) -> jax.Array:
    """Pixels of each true class (rows) and predicted class, uint8 [B, H, W] twice → int32 [B, count, count]."""
    return _tally(labels != IGNORED, labels.astype(jnp.int32) * count + classes, count**2).reshape(-1, count, count)


def boundaries(labels: jax.Array, classes: jax.Array, count: int) -> jax.Array:
    """Boundary pixels of each class and how many of them the other map has nearby, uint8 [B, H, W] twice.

    A boundary pixel has a 4-neighbour that is not of its class; nearby is within `TOLERANCE` of the diagonal, rounded
    up to pixels, of a boundary pixel of the same class (Csurka et al. 2013, "What is a good evaluation measure for
    semantic segmentation?"; Perazzi et al. 2016, "A benchmark dataset and evaluation methodology for video object
    segmentation"). Pixels that do not count are no boundary, but a class ends at them in both maps: many data sets
    outline their objects with such pixels.

    Returns:
      int32 [B, count, 4]: predicted ones, those with a true one nearby, true ones, those with a predicted one nearby.
    """
    radius = math.ceil(TOLERANCE * math.hypot(*labels.shape[1:]))
    maps = [jnp.where(labels == IGNORED, IGNORED, x).astype(jnp.uint8) for x in (classes, labels)]
    edges = [_edges(x) for x in maps]
    near = [_dilate(_bits(x, edge, count), radius) for x, edge in zip(maps, edges, strict=True)]
    columns = []
    for mine, edge, other in zip(maps, edges, reversed(near), strict=True):
        met = edge & (other & _bits(mine, edge, count)).any(0)
        columns += [_tally(edge, mine, count), _tally(met, mine, count)]
    return jnp.stack(columns, -1)


def compute_metrics(rows: Predictions, split: Split, side: int) -> dict[str, float | None]:
    """The metrics of a split from the counts of all its pictures together.

    Returns:
      miou, dice: means over the classes that occur in truth or prediction.
      pixel_accuracy: share of the pixels that are right.
      boundary_f1: harmonic mean of the share of predicted boundary pixels with a true one nearby and the reverse, mean
        over the classes that have a boundary in truth or prediction; None where none has.
      loss: mean cross-entropy in nats.
      All are None where no pixel counts.
    """
    counts = rows["confusion"].sum(0, dtype=np.int64)
    total = counts.sum()
    table = per_class(counts)
    sizes, met = np.split(rows["boundary"].sum(0, dtype=np.int64)[:, [0, 2, 1, 3]], 2, axis=1)
    precision, recall = _ratio(met, np.maximum(sizes, 1)).T
    f1 = _ratio(2 * precision * recall, precision + recall, empty=0.0)
    return {
        "miou": _mean(table["iou"]),
        "dice": _mean(table["dice"]),
        "pixel_accuracy": float(counts.trace() / total) if total else None,
        "boundary_f1": _mean(np.where(sizes.any(1), f1, np.nan)),
        "loss": float(rows["losses"].sum(dtype=np.float64) / total) if total else None,
    }


def class_metrics(rows: Predictions, split: Split, side: int, classes: tuple[str, ...]) -> dict[str, Any]:
    """IoU, Dice, precision, recall and true pixels of every class, and the confusion matrix (rows are true classes).

    The ratios are None for a class that occurs neither in truth nor in prediction.
    """
    counts = rows["confusion"].sum(0, dtype=np.int64)
    columns = {name: [None if np.isnan(x) else float(x) for x in column] for name, column in per_class(counts).items()}
    columns = {"class": classes, **columns, "pixels": counts.sum(1).tolist()}
    table = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return {"per_class": table, "confusion": counts.tolist()}


def per_class(counts: np.ndarray) -> dict[str, np.ndarray]:
    """`iou`, `dice`, `precision` and `recall` from confusion matrices [..., C, C], [..., C] each.

    NaN for a class that occurs neither in truth nor in prediction; a precision or recall of nothing is 0.
    """
    right, true, guessed = counts.diagonal(axis1=-2, axis2=-1), counts.sum(-1), counts.sum(-2)
    some = true + guessed > 0
    return {
        "iou": _ratio(right, true + guessed - right),
        "dice": _ratio(2 * right, true + guessed),
        "precision": np.where(some, right / np.maximum(guessed, 1), np.nan),
        "recall": np.where(some, right / np.maximum(true, 1), np.nan),
    }


def _ratio(part: np.ndarray, whole: np.ndarray, empty: float = np.nan) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(whole), empty), where=whole > 0)


def _mean(values: np.ndarray) -> float | None:
    """Of those that are numbers; None where there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _tally(where: jax.Array, keys: jax.Array, count: int) -> jax.Array:
    """How often each key below `count` stands at the places `where`, [B, H, W] twice → int32 [B, count]."""
    batch = len(keys)
    keys = jnp.where(where, keys, count).reshape(batch, -1)
    rows = jnp.arange(batch)[:, None]
    return jnp.zeros((batch, count), jnp.int32).at[rows, keys].add(1, mode="drop")


def _edges(classes: jax.Array) -> jax.Array:
    """Which pixels count and have a 4-neighbour on the picture that is of another class or does not count."""
    down, right = classes[:, 1:] != classes[:, :-1], classes[:, :, 1:] != classes[:, :, :-1]
    vertical = jnp.pad(down, ((0, 0), (1, 0), (0, 0))) | jnp.pad(down, ((0, 0), (0, 1), (0, 0)))
    across = jnp.pad(right, ((0, 0), (0, 0), (1, 0))) | jnp.pad(right, ((0, 0), (0, 0), (0, 1)))
    return (classes != IGNORED) & (vertical | across)


def _bits(classes: jax.Array, where: jax.Array, count: int) -> jax.Array:
    """uint32 [words, B, H, W]: each class is a bit, set where the pixel is of it, so that all dilate at once."""
    words = jnp.arange(-(-count // BITS), dtype=jnp.uint8)[:, None, None, None]
    bit = jnp.uint32(1) << (classes % BITS).astype(jnp.uint32)
    return jnp.where(where & (classes // BITS == words), bit, 0)


def _dilate(bits: jax.Array, radius: int) -> jax.Array:
    """Bits [..., H, W] wherever one is set at most so many pixels away, by Euclid."""
    height, width = bits.shape[-2:]
    padded = jnp.pad(bits, [(0, 0)] * (bits.ndim - 2) + [(radius, radius)] * 2)
    found = bits
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            if dy * dy + dx * dx <= radius * radius:
                y, x = radius + dy, radius + dx
                found |= padded[..., y : y + height, x : x + width]
    return found


def per_image_metric(rows: Predictions) -> np.ndarray:
    """[N], the mean IoU of every picture over the classes that are in it, or that were said to be; NaN without any."""
    iou = per_class(rows["confusion"])["iou"]
    there = np.isfinite(iou)
    return np.where(there, iou, 0).sum(-1) / np.where(there.any(-1), there.sum(-1), np.nan)


def _figure_data(rows: Predictions, split: Split, side: int, count: int) -> dict[str, np.ndarray]:
    each = per_image_metric(rows)
    worst = np.argsort(each, kind="stable")[: count // 3]
    return {
        "images": split.images[worst],
        "label": split.labels[worst],
        "classes": rows["classes"][worst],
        "iou": each[worst],
    }


def _figures(data: Predictions, test: Mapping[str, Any], classes: Sequence[str], folder: Path) -> dict[str, Path]:
    from tljax.report import figures, image_grids  # Matplotlib takes a second to import

    images, labels, path, order = data["images"], data["label"], folder / "masks.png", np.arange(len(data["iou"]))
    return {
        "confusion": figures.draw_confusion(test["confusion"], classes, folder / "confusion.png"),
        "masks": image_grids.mask_grid(images, labels, data["classes"], classes, path, order, data["iou"], len(order)),
    }


def _write_predictions(found: PredictionSet) -> Iterator[tuple[dict[str, Any], str]]:
    from tljax.report import overlays

    for name, image, small in zip(found.files, found.images, found.predictions["classes"], strict=True):
        mask = resize(small, image.shape[:2], Image.Resampling.NEAREST)
        path = overlays.mask_png(mask, found.folder / f"{name}.mask.png")
        overlays.save(overlays.mask_overlay(image, mask, found.classes), found.folder / f"{name}.overlay.png")
        kinds, counts = np.unique(mask, return_counts=True)
        shares = {found.classes[kind]: count / mask.size for kind, count in zip(kinds, counts.tolist(), strict=True)}
        text = "  ".join(f"{kind} {100 * share:.1f} %" for kind, share in shares.items())
        yield {"mask": str(path), "shares": shares}, text


SEGMENTATION = Task(
    name="segmentation",
    heads=("unet", "fcn"),
    metrics=(
        ("miou", "mean IoU"),
        ("dice", "Dice, macro"),
        ("pixel_accuracy", "pixel accuracy"),
        ("boundary_f1", "boundary F1"),
    ),
    train_metric_name="pixel_accuracy",
    label_loss="cross_entropy",
    train_metric=train_metric,
    predict=predict,
    compute_metrics=compute_metrics,
    class_metrics=class_metrics,
    figure_data=_figure_data,
    figures=_figures,
    write_predictions=_write_predictions,
)
