"""Detection's answers beside a plain loop, and its scores beside pycocotools on its own files."""

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

SIDE, HEIGHT, WIDTH, PICTURES, CLASSES = 64, 128, 256, 6, 3
SCALE = np.array([HEIGHT, WIDTH] * 2) / SIDE
# COCOeval's summary, in its order.
STATS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", None, None, "ar")


def corners(rng, *shape, largest=40):
    start = rng.uniform(0, SIDE - 4, (*shape, 2))
    return np.concatenate([start, np.minimum(start + rng.uniform(2, largest, (*shape, 2)), SIDE)], -1)


def as_split(boxes, labels, crowd=None):
    images = np.zeros((len(labels), HEIGHT, WIDTH, 3), np.uint8)
    boxes = np.where(labels[..., None] >= 0, boxes * SCALE, 0).astype(np.float32)
    return Split(images, labels.astype(np.int32), boxes, crowd)


def as_rows(boxes, classes, scores):
    kept = classes >= 0
    return {
        "boxes": np.where(kept[..., None], boxes, 0).astype(np.float32),
        "classes": classes.astype(np.int32),
        "scores": np.where(kept, scores, 0).astype(np.float32),
    }


def a_case(seed=0):
    """Truth with crowds and an empty picture; detections near it, besides wrong and missing ones."""
    rng = np.random.default_rng(seed)
    truth, labels = corners(rng, PICTURES, 8, largest=60), rng.integers(0, CLASSES, (PICTURES, 8))
    labels[:, 6:], labels[2] = -1, -1
    crowd = np.zeros(labels.shape, bool)
    crowd[0, :2] = True
    near = np.clip(np.repeat(truth, 2, 1) + rng.normal(0, 1.5, (PICTURES, 16, 4)), 0, SIDE)
    near[..., 2:] = np.maximum(near[..., 2:], near[..., :2])
    kinds = np.where(rng.random((PICTURES, 16)) < 0.7, np.repeat(labels, 2, 1), rng.integers(0, CLASSES, (16,)))
    kinds[3] = -1
    return as_split(truth, labels, crowd), as_rows(near, kinds, np.sort(rng.random(kinds.shape))[:, ::-1])


def xywh(box):
    y0, x0, y1, x1 = (float(x) for x in box)
    return [x0, y0, x1 - x0, y1 - y0]


def by_pycocotools(split, rows, folder):
    truth, found = [], []
    for i, j in zip(*np.nonzero(split.labels >= 0), strict=True):
        box = xywh(split.boxes[i, j])
        one = {"id": len(truth) + 1, "image_id": int(i), "category_id": int(split.labels[i, j]), "bbox": box}
        truth.append(one | {"area": box[2] * box[3], "iscrowd": int(split.crowd[i, j])})
    for i, j in zip(*np.nonzero(rows["classes"] >= 0), strict=True):
        box = xywh(rows["boxes"][i, j] * SCALE)
        one = {"image_id": int(i), "category_id": int(rows["classes"][i, j]), "bbox": box}
        found.append(one | {"score": float(rows["scores"][i, j])})
    categories = [{"id": k} for k in range(CLASSES)]
    data = {"images": [{"id": i} for i in range(len(split))], "annotations": truth, "categories": categories}
    (folder / "truth.json").write_text(json.dumps(data))
    (folder / "found.json").write_text(json.dumps(found))
    known = COCO(folder / "truth.json")
    judge = COCOeval(known, known.loadRes(str(folder / "found.json")), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return judge, found


def test_scores_and_details_equal_pycocotools_on_its_own_files(tmp_path, capsys):
    split, rows = a_case()
    judge, found = by_pycocotools(split, rows, tmp_path)
    capsys.readouterr()
    ours = DETECTION.compute_metrics(rows, split, SIDE)
    assert not capsys.readouterr().out
    for key, theirs in zip(STATS, judge.stats, strict=False):
        assert key is None or ours[key] == pytest.approx(theirs, abs=1e-12)
    assert 0.1 < ours["ap"] < ours["ap50"] < 0.95
    assert None not in ours.values()
    assert {key for key, _ in DETECTION.metrics} == set(ours)

    told = DETECTION.class_metrics(rows, split, SIDE, ("a", "b", "c"))
    precision = judge.eval["precision"][:, :, :, 0, 2]
    for k, row in enumerate(told["per_class"]):
        expected = {"class": "abc"[k], "ap": precision[:, :, k].mean(), "ap50": precision[0, :, k].mean()}
        assert row == pytest.approx(expected | {"objects": ((split.labels == k) & ~split.crowd).sum()})
        np.testing.assert_array_equal(told["precision_recall"]["precision"]["abc"[k]], precision[0, :, k])
    np.testing.assert_allclose(told["precision_recall"]["recall"], judge.params.recThrs)
    json.dumps(told)

    ours = coco_results(rows, range(PICTURES), [(HEIGHT, WIDTH)] * PICTURES, SIDE)
    assert [r | {"bbox": pytest.approx(r["bbox"])} for r in found] == ours
    json.dumps(ours)


def test_a_perfect_network_has_an_average_precision_of_one_and_areas_without_boxes_none():
    rng = np.random.default_rng(1)
    truth, labels = corners(rng, 3, 4, largest=6), rng.integers(0, CLASSES, (3, 4))
    labels[1] = -1
    ours = DETECTION.compute_metrics(as_rows(truth, labels, np.full((3, 4), 0.9)), as_split(truth, labels), SIDE)
    assert ours["ap"] == ours["ap50"] == ours["ap75"] == ours["ar"] == pytest.approx(1)
    assert ours["ap_large"] is None


def test_a_silent_network_scores_nothing_and_pictures_without_boxes_cannot_be_scored():
    split, rows = a_case()
    silent = as_rows(rows["boxes"], np.full_like(rows["classes"], -1), rows["scores"])
    ours = DETECTION.compute_metrics(silent, split, SIDE)
    assert ours["ap"] == ours["ar"] == 0
    empty = as_split(split.boxes, np.full_like(split.labels, -1))
    for given in (rows, silent):
        assert set(DETECTION.compute_metrics(given, empty, SIDE).values()) == {None}
    told = DETECTION.class_metrics(silent, empty, SIDE, ("a", "b"))
    assert told["per_class"][1] == {"class": "b", "ap": None, "ap50": None, "objects": 0}
    assert told["precision_recall"]["precision"] == {}
    assert coco_results(silent, range(6), [(8, 8)] * 6, SIDE) == []


def test_a_thousand_boxes_in_a_picture_are_judged_in_time():
    rng = np.random.default_rng(2)
    truth, labels = corners(rng, 1, 1000), rng.integers(0, 2, (1, 1000))
    rows = as_rows(truth[:, :100], labels[:, :100], rng.random((1, 100)))
    ours = DETECTION.compute_metrics(rows, as_split(truth, labels), SIDE)
    assert ours["ar"] == pytest.approx(0.1, abs=0.01)


def test_what_a_crowd_covers_counts_neither_way():
    box = np.array([[[4.0, 4.0, 20.0, 20.0], [30.0, 30.0, 60.0, 60.0]]])
    split = as_split(box, np.zeros((1, 2), int), np.array([[False, True]]))
    found = np.concatenate([[[[31.0, 31.0, 45.0, 45.0]]], box[:, :1]], 1)
    rows = as_rows(found, np.zeros((1, 2), int), np.array([[0.9, 0.8]]))
    assert DETECTION.compute_metrics(rows, split, SIDE)["ap"] == pytest.approx(1)
    assert DETECTION.class_metrics(rows, split, SIDE, ("a",))["per_class"][0]["objects"] == 1


def outputs_and_batch():
    """What a network says of 8 × 8 places of stride 8, and three boxes a picture, of which the second has none."""
    rng = np.random.default_rng(3)
    at = (np.arange(8) + 0.5) * 8
    places = np.stack([*np.meshgrid(at, at, indexing="ij"), np.full((8, 8), 8.0)], -1).reshape(-1, 3)
    reach = rng.uniform(-2, 20, (2, 64, 4))
    boxes = np.concatenate([places[:, :2] - reach[..., :2], places[:, :2] + reach[..., 2:]], -1)
    outputs = {
        "logits": rng.normal(-2, 2, (2, 64, CLASSES)),
        "boxes": boxes,
        "centre": rng.normal(0, 1, (2, 64)),
        "places": np.tile(places, (2, 1, 1)),
    }
    batch = {"label": np.array([[0, 2, -1], [-1, -1, -1]]), "boxes": corners(rng, 2, 3)}
    as_float = {name: jnp.asarray(x, jnp.float32) for name, x in outputs.items()}
    return as_float, batch | {"boxes": batch["boxes"].astype(np.float32)}


def overlap(a, b):
    size = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0).prod()
    return size / max((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - size, 1e-9)


def plainly(outputs, i):
    """(box, class, score) of what is kept in picture i, by loops."""
    p, centre = (jax.nn.sigmoid(outputs[name][i]) for name in ("logits", "centre"))
    scores = np.sqrt(np.asarray(p) * np.asarray(centre)[:, None])
    boxes, kept = np.clip(np.asarray(outputs["boxes"][i]), 0, SIDE), []
    for place, kind in zip(*np.unravel_index(np.argsort(-scores, None, kind="stable"), scores.shape), strict=True):
        apart = all(overlap(b, boxes[place]) <= 0.6 for b, k, _ in kept if k == kind)
        if scores[place, kind] > 0.05 and apart and len(kept) < 100:
            kept.append((boxes[place], kind, scores[place, kind]))
    return kept


def test_answers_are_those_of_a_plain_loop_and_carry_the_loss():
    outputs, batch = outputs_and_batch()
    rows, loss = jax.jit(lambda *x: (DETECTION.predict(*x), detection(*x, {}, {})))(outputs, batch)
    kept = plainly(outputs, 0)
    boxes, kinds, scores = (np.array(x) for x in zip(*kept, strict=True))
    n = len(kept)
    assert n > 10
    np.testing.assert_allclose(rows["boxes"][0, :n], boxes, atol=1e-4)
    np.testing.assert_array_equal(rows["classes"][0, :n], kinds)
    np.testing.assert_allclose(rows["scores"][0, :n], scores, rtol=1e-5)
    assert (rows["classes"][0, n:] == -1).all()
    assert not rows["scores"][0, n:].any()
    assert rows["boxes"].shape == (2, 100, 4)

    rows = {name: np.asarray(x) for name, x in rows.items()}
    told = DETECTION.compute_metrics(rows, as_split(batch["boxes"], batch["label"]), SIDE)
    assert told["loss"] == pytest.approx(float(loss), rel=1e-6)
    assert set(jax.eval_shape(lambda x: DETECTION.predict(x, {}), outputs)) == {"boxes", "scores", "classes"}


def test_seen_is_the_mean_overlap_at_the_places_of_boxes():
    outputs, batch = outputs_and_batch()
    right = jax.jit(make_targets)(outputs, batch)
    assert [n > 0 for n in right.positive.sum(1)] == [True, False]
    half = right.boxes.at[..., 2].set(right.boxes[..., [0, 2]].mean(-1))
    for boxes, share in ((right.boxes, 1), (half, 0.5)):
        np.testing.assert_allclose(
            jax.jit(DETECTION.train_metric)(outputs | {"boxes": boxes}, batch), [share, 0], rtol=1e-5
        )


def test_the_f1_of_a_picture_counts_what_is_right_once():
    box, other = [8, 8, 24, 24], [40, 40, 60, 60]
    labels = np.array([[1, 2], [1, -1], [-1, -1], [-1, -1]])
    split = as_split(np.array([[box, other], [box, box], [box, box], [box, box]], np.float64), labels)
    rows = {
        # Twice the same one and one of the wrong class; one that is not sure; one where there is nothing; none.
        "boxes": np.array([[box, box, other], [box] * 3, [box] * 3, [box] * 3], np.float32),
        "scores": np.array([[0.9, 0.8, 0.7], [0.2, 0, 0], [0.9, 0, 0], [0, 0, 0]], np.float32),
        "classes": np.array([[1, 1, 0], [1, -1, -1], [0, -1, -1], [-1, -1, -1]], np.int32),
    }
    np.testing.assert_allclose(per_image_metric(rows, split, SIDE), [2 / 5, 0, 0, np.nan])
