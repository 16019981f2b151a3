"""Segmentation: predictions and metrics at the resolution of the labels."""

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
from tljax.tasks.task import Arrays, Metric, Predictions, PredictionSet, Task

# Maximum distance of matching boundary pixels, as a share of the diagonal (Perazzi et al. 2016, section 5.1).
TOLERANCE = 0.008
BITS_PER_WORD = 32


def train_metric(outputs: Mapping[str, Any], batch: Arrays) -> jax.Array:
    """Return the accuracy over the valid pixels of each image, [B]; 1 if all pixels are ignored."""
    labels = batch["label"]
    valid = labels != IGNORED
    classes = resize_logits(outputs["logits"], labels.shape[1:]).argmax(-1)
    wrong = (valid & (classes != labels)).sum((1, 2))
    return 1 - wrong / jnp.maximum(valid.sum((1, 2)), 1)


def predict(outputs: Mapping[str, Any], batch: Arrays) -> dict[str, jax.Array]:
    """Return the predicted class of each pixel, and counts for the metrics if there are labels.

    Args:
      outputs: `logits` [B, h, w, C].
      batch: `label` [B, H, W] or `image` [B, H, W, c], to whose resolution the logits are resized; with neither, they
        keep their own.

    Returns:
      classes: uint8 [B, H, W], the most probable class.
      If there is `label`, also:
      confusion: int32 [B, C, C], pixels of each true class (rows) and predicted class.
      boundary: int32 [B, C, 4], from `boundaries`.
      losses: float32 [B], the sum of the cross-entropy over the valid pixels, in nats.
      counted: int32 [B], the number of valid pixels.
    """
    labels = batch.get("label")
    reference = next(x for x in (labels, batch.get("image"), outputs["logits"]) if x is not None)
    logits = resize_logits(outputs["logits"], reference.shape[1:3])
    classes = logits.argmax(-1).astype(jnp.uint8)
    if labels is None:
        return {"classes": classes}
    valid = labels != IGNORED
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(valid, labels, 0).astype(jnp.int32))
    return {
        "classes": classes,
        "confusion": confusion(labels, classes, logits.shape[-1]),
        "boundary": boundaries(labels, classes, logits.shape[-1]),
        "losses": jnp.where(valid, losses, 0).sum((1, 2)),
        "counted": valid.sum((1, 2), dtype=jnp.int32),
    }


def confusion(labels: jax.Array, classes: jax.Array, num_classes: int) -> jax.Array:
    """Return the confusion matrix of each image over its valid pixels; rows are true classes.

    Args:
      labels: uint8 [B, H, W].
      classes: predictions, uint8 [B, H, W].
      num_classes: C.

    Returns:
      int32 [B, C, C].
    """
    pair = labels.astype(jnp.int32) * num_classes + classes
    return _count_values(labels != IGNORED, pair, num_classes**2).reshape(-1, num_classes, num_classes)


def boundaries(labels: jax.Array, classes: jax.Array, num_classes: int) -> jax.Array:
    """Count the boundary pixels of each class, and those that match a boundary pixel of the other mask.

    A boundary pixel has a 4-neighbor of another class. It matches if a boundary pixel of the same class in the other
    mask is at most `TOLERANCE` of the diagonal away, rounded up to pixels (Csurka et al. 2013, "What is a good
    evaluation measure for semantic segmentation?"; Perazzi et al. 2016, "A benchmark dataset and evaluation methodology
    for video object segmentation"). Ignored pixels are no boundary pixels themselves, but a class ends at them in both
    masks: many data sets outline their objects with ignored pixels.

    Args:
      labels: uint8 [B, H, W].
      classes: predictions, uint8 [B, H, W].
      num_classes: C.

    Returns:
      int32 [B, C, 4]: predicted, matched predicted, true, and matched true boundary pixels.
    """
    radius = math.ceil(TOLERANCE * math.hypot(*labels.shape[1:]))
    masks = [jnp.where(labels == IGNORED, IGNORED, x).astype(jnp.uint8) for x in (classes, labels)]
    edges = [_edges(mask) for mask in masks]
    dilated = [_dilate(_bit_masks(mask, edge, num_classes), radius) for mask, edge in zip(masks, edges, strict=True)]
    columns = []
    for mask, edge, other in zip(masks, edges, reversed(dilated), strict=True):
        matched = edge & (other & _bit_masks(mask, edge, num_classes)).any(0)
        columns += [_count_values(edge, mask, num_classes), _count_values(matched, mask, num_classes)]
    return jnp.stack(columns, -1)


def compute_metrics(predictions: Predictions, split: Split, side: int) -> dict[str, float | None]:
    """Return the metrics of a split, from counts that are summed over all its images.

    Args:
      predictions: {name: [N, ...]}, from `predict` with labels.
      split: not used.
      side: not used.

    Returns:
      miou, dice: means over the classes that occur in the labels or predictions.
      pixel_accuracy: share of correct pixels.
      boundary_f1: harmonic mean of the shares of matched predicted and matched true boundary pixels, mean over the
        classes with a boundary in the labels or predictions; None if there are none.
      loss: mean cross-entropy in nats.
      All are None if all pixels are ignored.
    """
    counts = predictions["confusion"].sum(0, dtype=np.int64)
    total = counts.sum()
    table = per_class(counts)
    boundary = predictions["boundary"].sum(0, dtype=np.int64)
    sizes = boundary[:, [0, 2]]
    precision, recall = _ratio(boundary[:, [1, 3]], np.maximum(sizes, 1)).T
    f1 = _ratio(2 * precision * recall, precision + recall, empty=0.0)
    return {
        "miou": _mean(table["iou"]),
        "dice": _mean(table["dice"]),
        "pixel_accuracy": float(counts.trace() / total) if total else None,
        "boundary_f1": _mean(np.where(sizes.any(1), f1, np.nan)),
        "loss": float(predictions["losses"].sum(dtype=np.float64) / total) if total else None,
    }


def class_metrics(predictions: Predictions, split: Split, side: int, classes: tuple[str, ...]) -> dict[str, Any]:
    """Return the metrics of each class, and the confusion matrix (rows are true classes).

    Args:
      predictions: {name: [N, ...]}, from `predict` with labels.
      split: not used.
      side: not used.
      classes: names of the classes.

    Returns:
      `per_class`: for each class `iou`, `dice`, `precision` and `recall`, None if it occurs neither in the labels nor
      in the predictions, and its number of true `pixels`.
      `confusion`: [C][C] numbers of pixels.
    """
    counts = predictions["confusion"].sum(0, dtype=np.int64)
    ratios = {name: [None if np.isnan(x) else float(x) for x in column] for name, column in per_class(counts).items()}
    columns = {"class": classes, **ratios, "pixels": counts.sum(1).tolist()}
    table = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return {"per_class": table, "confusion": counts.tolist()}


def per_class(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Return `iou`, `dice`, `precision` and `recall` of each class, [..., C], from confusion matrices [..., C, C].

    NaN for a class that occurs neither in the labels nor in the predictions; a precision or recall of 0 / 0 is 0.
    """
    correct = counts.diagonal(axis1=-2, axis2=-1)
    true = counts.sum(-1)
    predicted = counts.sum(-2)
    occurs = true + predicted > 0
    return {
        "iou": _ratio(correct, true + predicted - correct),
        "dice": _ratio(2 * correct, true + predicted),
        "precision": np.where(occurs, correct / np.maximum(predicted, 1), np.nan),
        "recall": np.where(occurs, correct / np.maximum(true, 1), np.nan),
    }


def _ratio(part: np.ndarray, whole: np.ndarray, empty: float = np.nan) -> np.ndarray:
    """Divide elementwise, with `empty` where the denominator is 0."""
    return np.divide(part, whole, out=np.full(np.shape(whole), empty), where=whole > 0)


def _mean(values: np.ndarray) -> float | None:
    """Return the mean of the values that are not NaN, or None if there are none."""
    valid = values[~np.isnan(values)]
    return float(valid.mean()) if len(valid) else None


def _count_values(where: jax.Array, values: jax.Array, size: int) -> jax.Array:
    """Count each value below `size` at the pixels selected by `where`: bool and int [B, H, W] → int32 [B, size]."""
    batch = len(values)
    values = jnp.where(where, values, size).reshape(batch, -1)
    rows = jnp.arange(batch)[:, None]
    return jnp.zeros((batch, size), jnp.int32).at[rows, values].add(1, mode="drop")


def _edges(classes: jax.Array) -> jax.Array:
    """Return which valid pixels have a 4-neighbor in the image that is ignored or of another class."""
    down = classes[:, 1:] != classes[:, :-1]
    right = classes[:, :, 1:] != classes[:, :, :-1]
    vertical = jnp.pad(down, ((0, 0), (1, 0), (0, 0))) | jnp.pad(down, ((0, 0), (0, 1), (0, 0)))
    horizontal = jnp.pad(right, ((0, 0), (0, 0), (1, 0))) | jnp.pad(right, ((0, 0), (0, 0), (0, 1)))
    return (classes != IGNORED) & (vertical | horizontal)


def _bit_masks(classes: jax.Array, where: jax.Array, num_classes: int) -> jax.Array:
    """Encode classes as one bit each, uint32 [words, B, H, W], so that one dilation handles 32 classes."""
    words = jnp.arange(-(-num_classes // BITS_PER_WORD), dtype=jnp.uint8)[:, None, None, None]
    bit = jnp.uint32(1) << (classes % BITS_PER_WORD).astype(jnp.uint32)
    return jnp.where(where & (classes // BITS_PER_WORD == words), bit, 0)


def _dilate(bits: jax.Array, radius: int) -> jax.Array:
    """Dilate bit masks [..., H, W] by a disk of this radius in pixels."""
    height, width = bits.shape[-2:]
    padded = jnp.pad(bits, [(0, 0)] * (bits.ndim - 2) + [(radius, radius)] * 2)
    dilated = bits
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            if dy * dy + dx * dx <= radius * radius:
                y = radius + dy
                x = radius + dx
                dilated |= padded[..., y : y + height, x : x + width]
    return dilated


def per_image_metric(predictions: Predictions) -> np.ndarray:
    """Return the mean IoU of each image over its true and predicted classes, [N]; NaN if all pixels are ignored."""
    iou = per_class(predictions["confusion"])["iou"]
    valid = np.isfinite(iou)
    return np.where(valid, iou, 0).sum(-1) / np.where(valid.any(-1), valid.sum(-1), np.nan)


def _figure_data(predictions: Predictions, split: Split, side: int, count: int) -> dict[str, np.ndarray]:
    iou = per_image_metric(predictions)
    worst = np.argsort(iou, kind="stable")[: count // 3]
    return {
        "images": split.images[worst],
        "label": split.labels[worst],
        "classes": predictions["classes"][worst],
        "iou": iou[worst],
    }


def _figures(data: Predictions, test: Mapping[str, Any], classes: Sequence[str], folder: Path) -> dict[str, Path]:
    from tljax.report import figures, image_grids  # imported here: Matplotlib takes a second

    images, labels, predicted = (data[name] for name in ("images", "label", "classes"))
    count = len(data["iou"])
    ranking = image_grids.Ranking(np.arange(count), data["iou"], "IoU", count)
    return {
        "confusion": figures.draw_confusion(test["confusion"], classes, folder / "confusion.png"),
        "masks": image_grids.mask_grid(images, labels, predicted, classes, folder / "masks.png", ranking),
    }


def _write_predictions(prediction_set: PredictionSet) -> Iterator[tuple[dict[str, Any], str]]:
    from tljax.report import overlays

    folder = prediction_set.folder
    classes = prediction_set.classes
    masks = prediction_set.predictions["classes"]
    for name, image, mask in zip(prediction_set.files, prediction_set.images, masks, strict=True):
        mask = resize(mask, image.shape[:2], Image.Resampling.NEAREST)
        path = overlays.save_mask_png(mask, folder / f"{name}.mask.png")
        overlays.save_png(overlays.mask_overlay(image, mask, classes), folder / f"{name}.overlay.png")
        indices, counts = np.unique(mask, return_counts=True)
        shares = {classes[index]: count / mask.size for index, count in zip(indices, counts.tolist(), strict=True)}
        text = "  ".join(f"{class_name} {100 * share:.1f} %" for class_name, share in shares.items())
        yield {"mask": str(path), "shares": shares}, text


SEGMENTATION = Task(
    name="segmentation",
    heads=("unet", "fcn"),
    metrics=(
        Metric("miou", title="mean IoU"),
        Metric("dice", title="Dice, macro"),
        Metric("pixel_accuracy"),
        Metric("boundary_f1", title="boundary F1"),
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
