"""Detection: predictions against a loop in NumPy, and metrics against pycocotools on files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tljax.data import Split
from tljax.losses.detection import detection, make_targets
from tljax.tasks.detection import DETECTION, coco_results, per_image_metric

SIDE = 64
HEIGHT, WIDTH = 128, 256
NUM_IMAGES = 6
NUM_CLASSES = 3
SCALE = np.array([HEIGHT, WIDTH] * 2) / SIDE
# Entries of COCOeval's summary, in its order.
STATS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", None, None, "ar")


def random_boxes(rng, *shape, largest=40):
    start = rng.uniform(0, SIDE - 4, (*shape, 2))
    return np.concatenate([start, np.minimum(start + rng.uniform(2, largest, (*shape, 2)), SIDE)], -1)


def make_split(boxes, labels, crowd=None):
    images = np.zeros((len(labels), HEIGHT, WIDTH, 3), np.uint8)
    boxes = np.where(labels[..., None] >= 0, boxes * SCALE, 0).astype(np.float32)
    return Split(images, labels.astype(np.int32), boxes, crowd)


def make_predictions(boxes, classes, scores):
    valid = classes >= 0
    return {
        "boxes": np.where(valid[..., None], boxes, 0).astype(np.float32),
        "classes": classes.astype(np.int32),
        "scores": np.where(valid, scores, 0).astype(np.float32),
    }


def make_case(seed=0):
    """Return a split with crowds and an empty image, and predictions near its boxes, some wrong and some missing."""
    rng = np.random.default_rng(seed)
    boxes = random_boxes(rng, NUM_IMAGES, 8, largest=60)
    labels = rng.integers(0, NUM_CLASSES, (NUM_IMAGES, 8))
    labels[:, 6:] = -1
    labels[2] = -1
    crowd = np.zeros(labels.shape, bool)
    crowd[0, :2] = True
    predicted = np.clip(np.repeat(boxes, 2, 1) + rng.normal(0, 1.5, (NUM_IMAGES, 16, 4)), 0, SIDE)
    predicted[..., 2:] = np.maximum(predicted[..., 2:], predicted[..., :2])
    correct = rng.random((NUM_IMAGES, 16)) < 0.7
    classes = np.where(correct, np.repeat(labels, 2, 1), rng.integers(0, NUM_CLASSES, (16,)))
    classes[3] = -1
    scores = np.sort(rng.random(classes.shape))[:, ::-1]
    return make_split(boxes, labels, crowd), make_predictions(predicted, classes, scores)


def to_coco_box(box):
    y0, x0, y1, x1 = (float(x) for x in box)
    return [x0, y0, x1 - x0, y1 - y0]


def evaluate_with_pycocotools(split, predictions, folder):
    """Return a COCOeval that has read annotations and results from files, and the results."""
    annotations = []
    for i, j in zip(*np.nonzero(split.labels >= 0), strict=True):
        box = to_coco_box(split.boxes[i, j])
        row = {"id": len(annotations) + 1, "image_id": int(i), "category_id": int(split.labels[i, j]), "bbox": box}
        annotations.append(row | {"area": box[2] * box[3], "iscrowd": int(split.crowd[i, j])})
    results = []
    for i, j in zip(*np.nonzero(predictions["classes"] >= 0), strict=True):
        box = to_coco_box(predictions["boxes"][i, j] * SCALE)
        row = {"image_id": int(i), "category_id": int(predictions["classes"][i, j]), "bbox": box}
        results.append(row | {"score": float(predictions["scores"][i, j])})
    categories = [{"id": k} for k in range(NUM_CLASSES)]
    data = {"images": [{"id": i} for i in range(len(split))], "annotations": annotations, "categories": categories}
    (folder / "truth.json").write_text(json.dumps(data))
    (folder / "results.json").write_text(json.dumps(results))
    coco = COCO(folder / "truth.json")
    evaluator = COCOeval(coco, coco.loadRes(str(folder / "results.json")), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return evaluator, results


def test_metrics_match_pycocotools(tmp_path, capsys):
    split, predictions = make_case()
    evaluator, results = evaluate_with_pycocotools(split, predictions, tmp_path)
    capsys.readouterr()
    metrics = DETECTION.compute_metrics(predictions, split, SIDE)
    assert not capsys.readouterr().out
    for key, expected in zip(STATS, evaluator.stats, strict=False):
        assert key is None or metrics[key] == pytest.approx(expected, abs=1e-12)
    assert 0.1 < metrics["ap"] < metrics["ap50"] < 0.95
    assert None not in metrics.values()
    assert {metric.name for metric in DETECTION.metrics} == set(metrics)

    by_class = DETECTION.class_metrics(predictions, split, SIDE, ("a", "b", "c"))
    precision = evaluator.eval["precision"][:, :, :, 0, 2]
    for k, row in enumerate(by_class["per_class"]):
        expected = {"class": "abc"[k], "ap": precision[:, :, k].mean(), "ap50": precision[0, :, k].mean()}
        assert row == pytest.approx(expected | {"objects": ((split.labels == k) & ~split.crowd).sum()})
        np.testing.assert_array_equal(by_class["precision_recall"]["precision"]["abc"[k]], precision[0, :, k])
    np.testing.assert_allclose(by_class["precision_recall"]["recall"], evaluator.params.recThrs)
    json.dumps(by_class)

    written = coco_results(predictions, range(NUM_IMAGES), [(HEIGHT, WIDTH)] * NUM_IMAGES, SIDE)
    assert [row | {"bbox": pytest.approx(row["bbox"])} for row in results] == written
    json.dumps(written)


def test_perfect_predictions_have_ap_one():
    rng = np.random.default_rng(1)
    boxes = random_boxes(rng, 3, 4, largest=6)
    labels = rng.integers(0, NUM_CLASSES, (3, 4))
    labels[1] = -1
    predictions = make_predictions(boxes, labels, np.full((3, 4), 0.9))
    metrics = DETECTION.compute_metrics(predictions, make_split(boxes, labels), SIDE)
    assert metrics["ap"] == metrics["ap50"] == metrics["ap75"] == metrics["ar"] == pytest.approx(1)
    assert metrics["ap_large"] is None


def test_metrics_without_predictions_or_objects():
    split, predictions = make_case()
    no_classes = np.full_like(predictions["classes"], -1)
    no_predictions = make_predictions(predictions["boxes"], no_classes, predictions["scores"])
    metrics = DETECTION.compute_metrics(no_predictions, split, SIDE)
    assert metrics["ap"] == metrics["ar"] == 0
    no_objects = make_split(split.boxes, np.full_like(split.labels, -1))
    for given in (predictions, no_predictions):
        assert set(DETECTION.compute_metrics(given, no_objects, SIDE).values()) == {None}
    by_class = DETECTION.class_metrics(no_predictions, no_objects, SIDE, ("a", "b"))
    assert by_class["per_class"][1] == {"class": "b", "ap": None, "ap50": None, "objects": 0}
    assert by_class["precision_recall"]["precision"] == {}
    assert coco_results(no_predictions, range(6), [(8, 8)] * 6, SIDE) == []


def test_metrics_of_image_with_a_thousand_boxes():
    rng = np.random.default_rng(2)
    boxes = random_boxes(rng, 1, 1000)
    labels = rng.integers(0, 2, (1, 1000))
    predictions = make_predictions(boxes[:, :100], labels[:, :100], rng.random((1, 100)))
    metrics = DETECTION.compute_metrics(predictions, make_split(boxes, labels), SIDE)
    assert metrics["ar"] == pytest.approx(0.1, abs=0.01)


def test_detections_in_crowds_are_ignored():
    boxes = np.array([[[4.0, 4.0, 20.0, 20.0], [30.0, 30.0, 60.0, 60.0]]])
    split = make_split(boxes, np.zeros((1, 2), int), np.array([[False, True]]))
    predicted = np.concatenate([[[[31.0, 31.0, 45.0, 45.0]]], boxes[:, :1]], 1)
    predictions = make_predictions(predicted, np.zeros((1, 2), int), np.array([[0.9, 0.8]]))
    assert DETECTION.compute_metrics(predictions, split, SIDE)["ap"] == pytest.approx(1)
    assert DETECTION.class_metrics(predictions, split, SIDE, ("a",))["per_class"][0]["objects"] == 1


def make_outputs_and_batch():
    """Return outputs at 8 x 8 locations of stride 8 for two images; the second image has no boxes."""
    rng = np.random.default_rng(3)
    centers = (np.arange(8) + 0.5) * 8
    locations = np.stack([*np.meshgrid(centers, centers, indexing="ij"), np.full((8, 8), 8.0)], -1).reshape(-1, 3)
    offsets = rng.uniform(-2, 20, (2, 64, 4))
    boxes = np.concatenate([locations[:, :2] - offsets[..., :2], locations[:, :2] + offsets[..., 2:]], -1)
    outputs = {
        "logits": rng.normal(-2, 2, (2, 64, NUM_CLASSES)),
        "boxes": boxes,
        "centre": rng.normal(0, 1, (2, 64)),
        "places": np.tile(locations, (2, 1, 1)),
    }
    labels = np.array([[0, 2, -1], [-1, -1, -1]])
    batch = {"label": labels, "boxes": random_boxes(rng, 2, 3).astype(np.float32)}
    return {name: jnp.asarray(x, jnp.float32) for name, x in outputs.items()}, batch


def iou(a, b):
    intersection = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0).prod()
    return intersection / max((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - intersection, 1e-9)


def decode_with_loops(outputs, i):
    """Return the (box, class, score) triples of image i after non-maximum suppression."""
    p, centerness = (jax.nn.sigmoid(outputs[name][i]) for name in ("logits", "centre"))
    scores = np.sqrt(np.asarray(p) * np.asarray(centerness)[:, None])
    boxes = np.clip(np.asarray(outputs["boxes"][i]), 0, SIDE)
    kept = []
    order = np.unravel_index(np.argsort(-scores, None, kind="stable"), scores.shape)
    for location, label in zip(*order, strict=True):
        separate = all(iou(box, boxes[location]) <= 0.6 for box, other, _ in kept if other == label)
        if scores[location, label] > 0.05 and separate and len(kept) < 100:
            kept.append((boxes[location], label, scores[location, label]))
    return kept


def test_predict_matches_loops_and_includes_losses():
    outputs, batch = make_outputs_and_batch()
    predictions, loss = jax.jit(lambda *x: (DETECTION.predict(*x), detection(*x, {}, {})))(outputs, batch)
    kept = decode_with_loops(outputs, 0)
    boxes, labels, scores = (np.array(x) for x in zip(*kept, strict=True))
    n = len(kept)
    assert n > 10
    np.testing.assert_allclose(predictions["boxes"][0, :n], boxes, atol=1e-4)
    np.testing.assert_array_equal(predictions["classes"][0, :n], labels)
    np.testing.assert_allclose(predictions["scores"][0, :n], scores, rtol=1e-5)
    assert (predictions["classes"][0, n:] == -1).all()
    assert not predictions["scores"][0, n:].any()
    assert predictions["boxes"].shape == (2, 100, 4)

    predictions = {name: np.asarray(x) for name, x in predictions.items()}
    metrics = DETECTION.compute_metrics(predictions, make_split(batch["boxes"], batch["label"]), SIDE)
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-6)
    assert set(jax.eval_shape(lambda x: DETECTION.predict(x, {}), outputs)) == {"boxes", "scores", "classes"}


def test_train_metric_is_mean_iou_at_positive_locations():
    outputs, batch = make_outputs_and_batch()
    targets = jax.jit(make_targets)(outputs, batch)
    assert [n > 0 for n in targets.positive.sum(1)] == [True, False]
    half = targets.boxes.at[..., 2].set(targets.boxes[..., [0, 2]].mean(-1))
    train_metric = jax.jit(DETECTION.train_metric)
    for boxes, expected in ((targets.boxes, 1), (half, 0.5)):
        np.testing.assert_allclose(train_metric(outputs | {"boxes": boxes}, batch), [expected, 0], rtol=1e-5)


def test_per_image_metric_matches_each_box_once():
    box = [8, 8, 24, 24]
    other = [40, 40, 60, 60]
    labels = np.array([[1, 2], [1, -1], [-1, -1], [-1, -1]])
    split = make_split(np.array([[box, other], [box, box], [box, box], [box, box]], np.float64), labels)
    predictions = {
        # Image 0: a duplicate and a wrong class; 1: a low score; 2: a box where there is no object; 3: no boxes.
        "boxes": np.array([[box, box, other], [box] * 3, [box] * 3, [box] * 3], np.float32),
        "scores": np.array([[0.9, 0.8, 0.7], [0.2, 0, 0], [0.9, 0, 0], [0, 0, 0]], np.float32),
        "classes": np.array([[1, 1, 0], [1, -1, -1], [0, -1, -1], [-1, -1, -1]], np.int32),
    }
    np.testing.assert_allclose(per_image_metric(predictions, split, SIDE), [2 / 5, 0, 0, np.nan])
