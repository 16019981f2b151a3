"""What detection is judged by: COCO's average precision, by COCO's own code.

Answers are boxes in pixels of the network's input; truth, and what is written for others, is in pixels of the picture.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tljax.data import Split
from tljax.losses.detection import MAX_DETECTIONS, decode, loss_terms, make_targets
from tljax.ops import boxes as boxes_of
from tljax.tasks.task import Arrays, Predictions, PredictionSet, Task

# Of COCOeval's arrays, along the axis of areas.
AREAS = {"ap": 0, "ap_small": 1, "ap_medium": 2, "ap_large": 3}
# Predicted boxes that are less certain are in the results, but neither drawn nor printed.
MIN_SHOWN = 0.3


def train_metric(outputs: Mapping[str, Any], batch: Arrays) -> jax.Array:
    """[B], mean IoU of the boxes of places that have one with what they are to be; 0 where a picture has none."""
    wanted = make_targets(outputs, batch)
    overlap = jnp.where(wanted.positive, boxes_of.iou(outputs["boxes"], wanted.boxes), 0)
    return overlap.sum(1) / jnp.maximum(wanted.positive.sum(1), 1)


def predict(outputs: Mapping[str, Any], batch: Arrays) -> dict[str, jax.Array]:
    """The best boxes of each picture after suppression, best first.

    Returns:
      `boxes`, `scores` and `classes` of `tljax.losses.detection.Detections`. Where the batch has labels, `losses`
      [B, 3], what focal, GIoU and centre-ness losses sum up to, and `positives` [B], by whose sum theirs are divided.
    """
    found = decode(outputs)._asdict()
    if "label" not in batch:
        return found
    sums = loss_terms(outputs, batch)
    return found | {"losses": jnp.stack(sums[:3], -1), "positives": sums.positives}


def compute_metrics(rows: Predictions, split: Split, side: int) -> dict[str, float | None]:
    """COCO's metrics, None where there is nothing to find; and the loss, where the rows have it.

    `ap` is the mean over IoU thresholds of 0.5, 0.55, ... 0.95; small boxes have less than 32² pixels of the picture,
    large ones more than 96²; `ar` is the recall of 100 detections a picture.
    """
    precision, recall, _ = _evaluate(rows, split, side)
    found = {key: _mean(precision[:, :, :, area]) for key, area in AREAS.items()}
    found |= {"ap50": _mean(precision[0, :, :, 0]), "ap75": _mean(precision[5, :, :, 0]), "ar": _mean(recall[:, :, 0])}
    if "losses" in rows:
        found["loss"] = float(np.sum(rows["losses"], dtype=np.float64) / max(1, np.sum(rows["positives"])))
    return found


def class_metrics(rows: Predictions, split: Split, side: int, classes: tuple[str, ...]) -> dict[str, Any]:
    """`per_class`: precision and number of objects, crowds aside; `precision_recall`: curves at an IoU of 0.5.

    The curves are `recall`, the 101 at which COCO looks, and `precision` there by class, of classes that are there.
    """
    precision, _, kinds = _evaluate(rows, split, side)
    there = split.labels >= 0 if split.crowd is None else (split.labels >= 0) & ~split.crowd
    objects = np.bincount(split.labels[there], minlength=len(classes))
    of_class = {kind: precision[:, :, k, 0] for k, kind in enumerate(kinds) if objects[kind]}
    nothing = np.empty((len(precision), 0))
    table = [
        {"class": name, "ap": _mean(p), "ap50": _mean(p[0]), "objects": int(objects[kind])}
        for kind, name in enumerate(classes)
        for p in [of_class.get(kind, nothing)]
    ]
    return {
        "per_class": table,
        "precision_recall": {
            "recall": np.linspace(0, 1, precision.shape[1]).tolist(),
            "precision": {classes[kind]: p[0].tolist() for kind, p in of_class.items()},
        },
    }


def per_image_metric(
    rows: Predictions, split: Split, side: int, least: float = 0.3, threshold: float = 0.5
) -> np.ndarray:
    """[N], the F1 of every picture's boxes; NaN where there are none and none were found.

    Args:
      rows: from `answers`.
      split: what is true.
      side: of the network's input.
      least: boxes with a lower score do not count.
      threshold: IoU from which on a box of the right class is right; the best come first, each finds one object.
    """
    from pycocotools import mask as coding

    each = np.full(len(split), np.nan)
    for i, known in enumerate((split.labels >= 0) & (True if split.crowd is None else ~split.crowd)):
        true, kinds = split.boxes[i][known], split.labels[i][known]
        sure = (rows["classes"][i] >= 0) & (rows["scores"][i] >= least)
        found, said = rows["boxes"][i][sure] / split.scale(side), rows["classes"][i][sure]
        if not len(true) or not len(found):
            each[i] = 0 if len(true) + len(found) else np.nan
            continue
        overlap = np.where(said[:, None] == kinds, coding.iou(_as_coco(found), _as_coco(true), [0] * len(true)), 0)
        right = 0
        for row in overlap:
            if row[best := row.argmax()] >= threshold:
                right, overlap[:, best] = right + 1, 0
        each[i] = 2 * right / (len(true) + len(found))
    return each


def coco_results(rows: Predictions, ids: Sequence, sizes: Sequence[tuple[int, int]], side: int) -> list[dict[str, Any]]:
    """The detections in the form of COCO's result files.

    Args:
      rows: from `answers`, [N, ...].
      ids: of the pictures.
      sizes: height and width of each picture in pixels.
      side: of the network's input.

    Returns:
      {"image_id", "category_id", "bbox", "score"} of each, the category being the index of the class and the box
      [x, y, width, height] in pixels of the picture.
    """
    sizes = np.asarray(sizes, np.float64).reshape(-1, 2)
    picture, place = np.nonzero(rows["classes"] >= 0)
    boxes = _as_coco(rows["boxes"][picture, place] * np.tile(sizes / side, 2)[picture])
    columns = rows["classes"][picture, place], boxes, rows["scores"][picture, place]
    return [
        {"image_id": ids[i], "category_id": kind, "bbox": box, "score": score}
        for i, kind, box, score in zip(picture, *(column.tolist() for column in columns), strict=True)
    ]


def _evaluate(rows: Predictions, split: Split, side: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """COCO's precision [thresholds, recalls, classes, areas], recall [thresholds, classes, areas], and the classes.

    Both are -1 where there is nothing to find. The classes are those that the split has.
    """
    from pycocotools.cocoeval import COCOeval  # takes a second, for which no first step should wait

    picture, place = np.nonzero(split.labels >= 0)
    kinds, boxes = split.labels[picture, place], _as_coco(split.boxes[picture, place])
    crowd = np.zeros(len(picture), int) if split.crowd is None else split.crowd[picture, place].astype(int)
    columns = picture, kinds, boxes, crowd
    truth = [
        {"image_id": i, "category_id": kind, "bbox": box, "area": box[2] * box[3], "iscrowd": crowd}
        for i, kind, box, crowd in zip(*(column.tolist() for column in columns), strict=True)
    ]
    known = np.unique(kinds).tolist()
    found = coco_results(rows, range(len(split)), [split.images.shape[1:3]] * len(split), side)
    for row in found:
        row |= {"area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
    with contextlib.redirect_stdout(io.StringIO()):  # it tells of its progress
        both = (_as_data_set(annotations, len(split), known) for annotations in (truth, found))
        judge = COCOeval(*both, iouType="bbox")
        judge.params.maxDets, ranges = [MAX_DETECTIONS], judge.params.areaRng
        # Its loops are slow: none for sizes of which there is no object, whose precision is -1 without them.
        sizes = [row["area"] for row in truth if not row["iscrowd"]]
        there = [k for k, (low, high) in enumerate(ranges) if any(low <= size <= high for size in sizes)]
        judge.params.areaRng = [ranges[k] for k in there]
        judge.evaluate()
        judge.accumulate()
    precision, recall = (judge.eval[name][..., 0] for name in ("precision", "recall"))
    every = [np.full((*x.shape[:-1], len(ranges)), -1.0) for x in (precision, recall)]
    every[0][..., there], every[1][..., there] = precision, recall
    return *every, known


def _as_data_set(annotations: list[dict], pictures: int, kinds: list[int]):
    from pycocotools.coco import COCO

    data = COCO()
    data.dataset = {
        "images": [{"id": i} for i in range(pictures)],
        "categories": [{"id": kind} for kind in kinds],
        # An id of 0 would be taken for no match.
        "annotations": [row | {"id": i} for i, row in enumerate(annotations, start=1)],
    }
    data.createIndex()
    return data


def _as_coco(boxes: np.ndarray) -> np.ndarray:
    """[N, 4], [y0, x0, y1, x1] → [x, y, width, height] in float64."""
    y0, x0, y1, x1 = np.asarray(boxes, np.float64).T
    return np.stack([x0, y0, x1 - x0, y1 - y0], -1)


def _mean(values: np.ndarray) -> float | None:
    """The mean of what is there, None of nothing."""
    there = values[values > -1]
    return float(there.mean()) if there.size else None


def _figure_data(rows: Predictions, split: Split, side: int, count: int) -> dict[str, np.ndarray]:
    each = per_image_metric(rows, split, side)
    worst = np.argsort(each, kind="stable")[: count // 2]
    return {
        "images": split.images[worst],
        "boxes": split.boxes[worst],
        "label": split.labels[worst],
        "predicted_boxes": rows["boxes"][worst] / split.scale(side),
        "scores": rows["scores"][worst],
        "classes": rows["classes"][worst],
        "f1": each[worst],
    }


def _figures(data: Predictions, test: Mapping[str, Any], classes: Sequence[str], folder: Path) -> dict[str, Path]:
    from tljax.report import image_grids  # Matplotlib takes a second to import

    curves, order, path = test["precision_recall"], np.arange(len(data["f1"])), folder / "precision_recall.png"
    names = ("images", "boxes", "label", "predicted_boxes", "scores", "classes")
    return {
        "precision_recall": image_grids.draw_precision_recall(curves["recall"], curves["precision"], classes, path),
        "boxes": image_grids.box_grid(
            *(data[name] for name in names), classes, folder / "boxes.png", order, data["f1"], len(order), "F1"
        ),
    }


def _write_predictions(found: PredictionSet) -> Iterator[tuple[dict[str, Any], str]]:
    from tljax.report import overlays

    sizes = [image.shape[:2] for image in found.images]
    found.folder.mkdir(parents=True, exist_ok=True)
    written = coco_results(found.predictions, [path.name for path in found.files.values()], sizes, found.side)
    (found.folder / "results.json").write_text(json.dumps(written))
    columns = (found.predictions[key] for key in ("boxes", "classes", "scores"))
    for name, image, boxes, kinds, certainty in zip(found.files, found.images, *columns, strict=True):
        height, width = image.shape[:2]
        boxes, shown = boxes * np.array([height, width] * 2) / found.side, certainty >= MIN_SHOWN
        drawn = overlays.box_overlay(image, boxes[shown], kinds[shown], certainty[shown], found.classes)
        overlays.save(drawn, found.folder / f"{name}.overlay.png")
        rows = zip(kinds.tolist(), certainty.tolist(), boxes.tolist(), strict=True)
        listed = [{"class": found.classes[kind], "score": score, "box": box} for kind, score, box in rows if kind >= 0]
        named = [f"{one['class']} {one['score']:.2f}" for one in listed if one["score"] >= MIN_SHOWN]
        yield {"boxes": listed}, "  ".join(named) or "nothing"


DETECTION = Task(
    name="detection",
    heads=("detector",),
    metrics=(
        ("ap", "AP"),
        ("ap50", "AP50"),
        ("ap75", "AP75"),
        ("ap_small", "AP, small"),
        ("ap_medium", "AP, medium"),
        ("ap_large", "AP, large"),
        ("ar", "AR, 100 detections"),
    ),
    train_metric_name="iou",
    label_loss="detection",
    train_metric=train_metric,
    predict=predict,
    compute_metrics=compute_metrics,
    class_metrics=class_metrics,
    figure_data=_figure_data,
    figures=_figures,
    write_predictions=_write_predictions,
)
