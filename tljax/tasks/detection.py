"""Detection: predictions, and COCO's average precision by pycocotools.

Predicted boxes are in pixels of the network's input; true boxes and written results are in pixels of the image.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from tljax.data import Split
from tljax.losses.detection import MAX_DETECTIONS, decode, loss_terms, make_targets
from tljax.ops import boxes as box_ops
from tljax.tasks.task import Arrays, Metric, Predictions, PredictionSet, Task

# Index of the object sizes along the last axis of COCOeval's arrays.
AREAS = {"ap": 0, "ap_small": 1, "ap_medium": 2, "ap_large": 3}
# Minimum score of a predicted box that is drawn or printed; all boxes are written to the results.
MIN_SHOWN = 0.3


def train_metric(outputs: Mapping[str, Any], batch: Arrays) -> jax.Array:
    """Return the mean IoU of predicted and target boxes at positive locations, [B]; 0 for an image without boxes."""
    targets = make_targets(outputs, batch)
    iou = jnp.where(targets.positive, box_ops.iou(outputs["boxes"], targets.boxes), 0)
    return iou.sum(1) / jnp.maximum(targets.positive.sum(1), 1)


def predict(outputs: Mapping[str, Any], batch: Arrays) -> dict[str, jax.Array]:
    """Return the best boxes of each image after non-maximum suppression, best first.

    Returns:
      `boxes`, `scores` and `classes` as in `tljax.losses.detection.Detections`. If the batch has labels, also `losses`
      [B, 3], the unnormalized focal, GIoU and centerness losses, and `positives` [B], their normalizer.
    """
    detections = decode(outputs)._asdict()
    if "label" not in batch:
        return detections
    terms = loss_terms(outputs, batch)
    losses = jnp.stack([terms.focal, terms.giou, terms.centerness], -1)
    return detections | {"losses": losses, "positives": terms.positives}


def compute_metrics(predictions: Predictions, split: Split, side: int) -> dict[str, float | None]:
    """Return COCO's metrics, None where there are no objects; and the loss, if the predictions include it.

    `ap` is the mean over the IoU thresholds 0.5, 0.55, ..., 0.95; small objects have less than 32² pixels of the image,
    large ones more than 96²; `ar` is the recall with 100 detections per image.

    Args:
      predictions: {name: [N, ...]}, from `predict`.
      split: images and true boxes.
      side: height and width of the network's input, in pixels.
    """
    precision, recall, _ = _evaluate(predictions, split, side)
    metrics = {key: _mean(precision[:, :, :, area]) for key, area in AREAS.items()}
    metrics["ap50"] = _mean(precision[0, :, :, 0])
    metrics["ap75"] = _mean(precision[5, :, :, 0])
    metrics["ar"] = _mean(recall[:, :, 0])
    if "losses" in predictions:
        total = np.sum(predictions["losses"], dtype=np.float64)
        metrics["loss"] = float(total / max(1, np.sum(predictions["positives"])))
    return metrics


def class_metrics(predictions: Predictions, split: Split, side: int, classes: tuple[str, ...]) -> dict[str, Any]:
    """Return the average precision of each class, and precision-recall curves.

    Args:
      predictions: {name: [N, ...]}, from `predict`.
      split: images and true boxes.
      side: height and width of the network's input, in pixels.
      classes: names of the classes.

    Returns:
      `per_class`: for each class `ap`, `ap50` and the number of `objects` without crowds.
      `precision_recall`: `recall`, COCO's 101 recall levels, and `precision` at an IoU of 0.5 for each class with
      objects.
    """
    precision, _, class_indices = _evaluate(predictions, split, side)
    counts = np.bincount(split.labels[_is_object(split)], minlength=len(classes))
    by_class = {index: precision[:, :, k, 0] for k, index in enumerate(class_indices) if counts[index]}
    empty = np.empty((len(precision), 0))
    per_class = []
    for index, name in enumerate(classes):
        curve = by_class.get(index, empty)
        row = {"class": name, "ap": _mean(curve), "ap50": _mean(curve[0]), "objects": int(counts[index])}
        per_class.append(row)
    return {
        "per_class": per_class,
        "precision_recall": {
            "recall": np.linspace(0, 1, precision.shape[1]).tolist(),
            "precision": {classes[index]: curve[0].tolist() for index, curve in by_class.items()},
        },
    }


def per_image_metric(
    predictions: Predictions, split: Split, side: int, min_score: float = 0.3, min_iou: float = 0.5
) -> np.ndarray:
    """Return the F1 of each image's boxes, [N]; NaN if an image has neither true nor predicted boxes.

    Args:
      predictions: {name: [N, ...]}, from `predict`.
      split: images and true boxes.
      side: height and width of the network's input, in pixels.
      min_score: boxes with a lower score are dropped.
      min_iou: IoU from which on a predicted box matches a true box of its class. Boxes are matched in the order of
        their scores, each true box at most once.
    """
    from pycocotools import mask as coco_mask

    assert split.boxes is not None
    f1 = np.full(len(split), np.nan)
    for i, is_object in enumerate(_is_object(split)):
        true_boxes = split.boxes[i][is_object]
        true_classes = split.labels[i][is_object]
        shown = (predictions["classes"][i] >= 0) & (predictions["scores"][i] >= min_score)
        predicted_boxes = predictions["boxes"][i][shown] / split.box_scale(side)
        predicted_classes = predictions["classes"][i][shown]
        count = len(true_boxes) + len(predicted_boxes)
        if not len(true_boxes) or not len(predicted_boxes):
            f1[i] = 0 if count else np.nan
            continue
        iou = coco_mask.iou(_to_coco(predicted_boxes), _to_coco(true_boxes), [0] * len(true_boxes))
        iou = np.where(predicted_classes[:, None] == true_classes, iou, 0)
        matched = 0
        for row in iou:
            best = row.argmax()
            if row[best] >= min_iou:
                matched += 1
                iou[:, best] = 0
        f1[i] = 2 * matched / count
    return f1


def coco_results(predictions: Predictions, ids: Sequence, sizes: ArrayLike, side: int) -> list[dict[str, Any]]:
    """Return the detections in the format of COCO's result files.

    Args:
      predictions: {name: [N, ...]}, from `predict`.
      ids: of the images.
      sizes: height and width of each image in pixels.
      side: height and width of the network's input, in pixels.

    Returns:
      {"image_id", "category_id", "bbox", "score"} of each detection: the category is the index of the class, the box is
      [x, y, width, height] in pixels of the image.
    """
    sizes = np.asarray(sizes, np.float64).reshape(-1, 2)
    image, slot = np.nonzero(predictions["classes"] >= 0)
    boxes = _to_coco(predictions["boxes"][image, slot] * np.tile(sizes / side, 2)[image])
    columns = (predictions["classes"][image, slot], boxes, predictions["scores"][image, slot])
    return [
        {"image_id": ids[i], "category_id": category, "bbox": box, "score": score}
        for i, category, box, score in zip(image, *(column.tolist() for column in columns), strict=True)
    ]


def _evaluate(predictions: Predictions, split: Split, side: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Run COCO's evaluation.

    Returns:
      precision [IoU thresholds, recall levels, classes, areas] and recall [IoU thresholds, classes, areas], -1 where
      there are no objects; and the indices of the classes, those that occur in the split.
    """
    from pycocotools.cocoeval import COCOeval  # imported here: it takes a second

    truth = _true_annotations(split)
    results = coco_results(predictions, range(len(split)), [split.images.shape[1:3]] * len(split), side)
    for row in results:
        row |= {"area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
    class_indices = np.unique(split.labels[split.labels >= 0]).tolist()
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        data_sets = (_coco_data_set(annotations, len(split), class_indices) for annotations in (truth, results))
        evaluator = COCOeval(*data_sets, iouType="bbox")
        evaluator.params.maxDets = [MAX_DETECTIONS]
        area_ranges = evaluator.params.areaRng
        # COCOeval's loops are slow: skip object sizes without an object, whose precision is -1 anyway.
        sizes = [row["area"] for row in truth if not row["iscrowd"]]
        present = [k for k, (low, high) in enumerate(area_ranges) if any(low <= size <= high for size in sizes)]
        evaluator.params.areaRng = [area_ranges[k] for k in present]
        evaluator.evaluate()
        evaluator.accumulate()
    arrays = []
    for name in ("precision", "recall"):
        values = evaluator.eval[name][..., 0]
        array = np.full((*values.shape[:-1], len(area_ranges)), -1.0)
        array[..., present] = values
        arrays.append(array)
    return *arrays, class_indices


def _true_annotations(split: Split) -> list[dict[str, Any]]:
    """Return the true boxes of a split, crowds included, as COCO annotations."""
    assert split.boxes is not None
    image, slot = np.nonzero(split.labels >= 0)
    crowd = np.zeros(len(image), int) if split.crowd is None else split.crowd[image, slot].astype(int)
    columns = (image, split.labels[image, slot], _to_coco(split.boxes[image, slot]), crowd)
    return [
        {"image_id": i, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": iscrowd}
        for i, category, box, iscrowd in zip(*(column.tolist() for column in columns), strict=True)
    ]


def _is_object(split: Split) -> np.ndarray:
    """Return which slots hold a box that is not a crowd, bool [N, M]."""
    present = split.labels >= 0
    return present if split.crowd is None else present & ~split.crowd


def _coco_data_set(annotations: list[dict], num_images: int, class_indices: list[int]):
    from pycocotools.coco import COCO

    data: Any = COCO()
    data.dataset = {
        "images": [{"id": i} for i in range(num_images)],
        "categories": [{"id": index} for index in class_indices],
        # Ids start at 1: COCOeval takes an id of 0 for "no match".
        "annotations": [row | {"id": i} for i, row in enumerate(annotations, start=1)],
    }
    data.createIndex()
    return data


def _to_coco(boxes: ArrayLike) -> np.ndarray:
    """Convert boxes [N, 4], or one [4], from [y0, x0, y1, x1] to [x, y, width, height], in float64."""
    y0, x0, y1, x1 = np.asarray(boxes, np.float64).T
    return np.stack([x0, y0, x1 - x0, y1 - y0], -1)


def _mean(values: np.ndarray) -> float | None:
    """Return the mean of the values that are not -1, or None if there are none."""
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else None


def _figure_data(predictions: Predictions, split: Split, side: int, count: int) -> dict[str, np.ndarray]:
    f1 = per_image_metric(predictions, split, side)
    worst = np.argsort(f1, kind="stable")[: count // 2]
    assert split.boxes is not None
    return {
        "images": split.images[worst],
        "boxes": split.boxes[worst],
        "label": split.labels[worst],
        "predicted_boxes": predictions["boxes"][worst] / split.box_scale(side),
        "scores": predictions["scores"][worst],
        "classes": predictions["classes"][worst],
        "f1": f1[worst],
    }


def _figures(data: Predictions, test: Mapping[str, Any], classes: Sequence[str], folder: Path) -> dict[str, Path]:
    from tljax.report import image_grids  # imported here: Matplotlib takes a second

    curves = test["precision_recall"]
    curves_path = folder / "precision_recall.png"
    truth = image_grids.Boxes(data["boxes"], data["label"])
    predicted = image_grids.Boxes(data["predicted_boxes"], data["classes"], data["scores"])
    count = len(data["f1"])
    ranking = image_grids.Ranking(np.arange(count), data["f1"], "F1", count)
    return {
        "precision_recall": image_grids.draw_precision_recall(
            curves["recall"], curves["precision"], classes, curves_path
        ),
        "boxes": image_grids.box_grid(data["images"], truth, predicted, classes, folder / "boxes.png", ranking),
    }


def _write_predictions(prediction_set: PredictionSet) -> Iterator[tuple[dict[str, Any], str]]:
    from tljax.report import overlays

    folder = prediction_set.folder
    predictions = prediction_set.predictions
    folder.mkdir(parents=True, exist_ok=True)
    columns = (predictions[key] for key in ("boxes", "classes", "scores"))
    for name, image, boxes, labels, scores in zip(prediction_set.files, prediction_set.images, *columns, strict=True):
        height, width = image.shape[:2]
        boxes = boxes * np.array([height, width] * 2) / prediction_set.side
        shown = scores >= MIN_SHOWN
        overlay = overlays.box_overlay(image, boxes[shown], labels[shown], scores[shown], prediction_set.classes)
        overlays.save_png(overlay, folder / f"{name}.overlay.png")
        rows = [
            {"class": prediction_set.classes[label], "score": score, "box": box}
            for label, score, box in zip(labels.tolist(), scores.tolist(), boxes.tolist(), strict=True)
            if label >= 0
        ]
        words = [f"{row['class']} {row['score']:.2f}" for row in rows if row["score"] >= MIN_SHOWN]
        yield {"boxes": rows}, "  ".join(words) or "nothing"


def _merge_predictions(rows: Iterable[Mapping[str, Any]], classes: Sequence[str], folder: Path) -> None:
    """Write all boxes to results.json in COCO's format for results."""
    index = {name: i for i, name in enumerate(classes)}
    results = []
    for row in rows:
        for box in row["boxes"]:
            ids = {"image_id": Path(row["image"]).name, "category_id": index[box["class"]]}
            results.append({**ids, "bbox": _to_coco(box["box"]).tolist(), "score": box["score"]})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results))


DETECTION = Task(
    name="detection",
    heads=("detector",),
    metrics=(
        Metric("ap", title="AP"),
        Metric("ap50", title="AP50"),
        Metric("ap75", title="AP75"),
        Metric("ap_small", title="AP, small"),
        Metric("ap_medium", title="AP, medium"),
        Metric("ap_large", title="AP, large"),
        Metric("ar", title="AR, 100 detections"),
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
    merge_predictions=_merge_predictions,
)
