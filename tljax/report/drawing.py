"""The figures of a run's report: which there are, task by task."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tljax.data import Split
from tljax.report import figures, sheets
from tljax.report.blocks import blocks, rows
from tljax.tasks import Task, classification, detection, segmentation

Answers = dict[str, np.ndarray]


def draw(
    plans: list,
    model,
    lr: float,
    task: Task,
    classes: list[str],
    result: dict,
    history: list[dict],
    test: Split,
    answers: Answers,
    folder: Path,
    *,
    count: int,
    side: int,
) -> dict[str, Path]:
    """Draws what the report shows; returns the files by their names in the report.

    Args:
      plans: of the phases.
      model: of the run.
      lr: the learning rate that multiples are of.
      task: of the run.
      classes: their names.
      result: with the test split's scores.
      history: rows of the validations.
      test: the test split.
      answers: to its pictures.
      folder: for the files.
      count: pictures on a sheet.
      side: of the network's input, whose pixels answers are in.
    """
    drawn = {
        "blocks": blocks(rows(plans, model, lr), folder / "blocks.png"),
        "curves": figures.curves(history, folder / "curves.png", task.metrics[0], task.progress),
    }
    return drawn | OF_TASK[task.name](classes, result["test"], test, answers, folder, count, side)


def _classification(classes, scores: dict, test: Split, answers: Answers, folder: Path, count: int, side: int) -> dict:
    probabilities = classification.probabilities(answers)
    wrong = figures.most_wrong(test.images, test.labels, probabilities, classes, folder / "most_wrong.png", count)
    return {
        "confusion": figures.confusion(scores["confusion"], classes, folder / "confusion.png"),
        "roc": figures.roc(test.labels, probabilities, classes, folder / "roc.png"),
        "most_wrong": wrong,
    }


def _segmentation(classes, scores: dict, test: Split, answers: Answers, folder: Path, count: int, side: int) -> dict:
    each = segmentation.of_each(answers)
    sheet, order = folder / "masks.png", np.argsort(each, kind="stable")
    return {
        "confusion": figures.confusion(scores["confusion"], classes, folder / "confusion.png"),
        "masks": sheets.mask_sheet(
            test.images, test.labels, answers["classes"], classes, sheet, order, each, count // 3
        ),
    }


def _detection(classes, scores: dict, test: Split, answers: Answers, folder: Path, count: int, side: int) -> dict:
    each, curves = detection.of_each(answers, test, side), scores["precision_recall"]
    boxes, order = answers["boxes"] / test.scale(side), np.argsort(each, kind="stable")
    return {
        "precision_recall": sheets.precision_recall(
            curves["recall"], curves["precision"], classes, folder / "precision_recall.png"
        ),
        "boxes": sheets.box_sheet(
            test.images,
            test.boxes,
            test.labels,
            boxes,
            answers["scores"],
            answers["classes"],
            classes,
            folder / "boxes.png",
            order,
            each,
            count // 2,
            "F1",
        ),
    }


OF_TASK = {"classification": _classification, "segmentation": _segmentation, "detection": _detection}
