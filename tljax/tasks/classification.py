"""What classification is judged by; scikit-learn's numbers where it has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tljax.data import Split
from tljax.tasks.task import Arrays, Predictions, PredictionSet, Task

METRICS = (
    ("accuracy", "accuracy"),
    ("top5", "top-5 accuracy"),
    ("precision_macro", "precision, macro"),
    ("recall_macro", "recall, macro"),
    ("f1_macro", "F1, macro"),
    ("roc_auc", "ROC AUC"),
    ("ece", "expected calibration error"),
)


def compute_metrics(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float | None]:
    """The scalar metrics of a split.

    Args:
      labels: [N], integers.
      probabilities: [N, classes], rows that sum to one.

    Returns:
      `METRICS` and `loss`: accuracy; the share of labels among the five likeliest classes; precision, recall and F1
      averaged over classes; ROC-AUC one against rest averaged over classes (None where a class has no picture);
      expected calibration error; mean negative log-likelihood in nats.
    """
    from sklearn import metrics  # takes a second, for which no first step should wait

    classes = np.arange(probabilities.shape[1])
    predicted = probabilities.argmax(1)
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        labels, predicted, labels=classes, average="macro", zero_division=0
    )
    top5 = (np.argsort(-probabilities, axis=1, kind="stable")[:, :5] == labels[:, None]).any(1).mean()
    likelihood = probabilities[np.arange(len(labels)), labels]
    return {
        "accuracy": float((predicted == labels).mean()),
        "top5": float(top5),
        "precision_macro": float(precision),
        "recall_macro": float(recall),
        "f1_macro": float(f1),
        "roc_auc": roc_auc(labels, probabilities),
        "ece": calibration_error(labels, probabilities),
        "loss": float(-np.log(np.maximum(likelihood, np.finfo(np.float64).tiny)).mean()),
    }


def class_metrics(labels: np.ndarray, probabilities: np.ndarray, classes: tuple[str, ...]) -> dict:
    """Precision, recall, F1 and support of every class, and the confusion matrix (rows are true classes)."""
    from sklearn import metrics

    index, predicted = np.arange(len(classes)), probabilities.argmax(1)
    table = metrics.precision_recall_fscore_support(labels, predicted, labels=index, zero_division=0)
    rows = zip(classes, *(column.tolist() for column in table), strict=True)
    return {
        "per_class": [dict(zip(("class", "precision", "recall", "f1", "support"), row, strict=True)) for row in rows],
        "confusion": metrics.confusion_matrix(labels, predicted, labels=index).tolist(),
    }


def best_thresholds(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """For each class the least probability at which one against rest has its best F1, [classes]; NaN without pictures.

    Those of validation are held to the test split (Lipton et al. 2014, arXiv:1402.1892, on what they optimise).
    """
    from sklearn import metrics

    found = np.full(probabilities.shape[1], np.nan)
    for c, chances in enumerate(probabilities.T):
        if (labels == c).any():
            precision, recall, at = metrics.precision_recall_curve(labels == c, chances)
            # The last point, of no threshold, has recall 0.
            f1 = (2 * precision * recall / np.maximum(precision + recall, 1e-12))[:-1]
            found[c] = at[f1.argmax()]
    return found


def metrics_at_thresholds(
    labels: np.ndarray, probabilities: np.ndarray, thresholds: np.ndarray, classes: Sequence[str]
):
    """`thresholded`: precision, recall and F1 of each class where a picture is of it from its threshold on."""
    from sklearn import metrics

    rows = []
    for c, (name, threshold) in enumerate(zip(classes, thresholds.tolist(), strict=True)):
        said = probabilities[:, c] >= threshold
        found = metrics.precision_recall_fscore_support(labels == c, said, average="binary", zero_division=0)[:3]
        known = not np.isnan(threshold)
        told = zip(("threshold", "precision", "recall", "f1"), (threshold, *map(float, found)), strict=True)
        rows.append({"class": name, **{key: value if known else None for key, value in told}})
    return {"thresholded": rows}


def roc_auc(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Area under the ROC curve, one against rest, macro average; None where a class has no or every picture."""
    from sklearn import metrics

    classes = np.arange(probabilities.shape[1])
    if len(np.unique(labels)) < len(classes):
        return None
    one_hot = labels[:, None] == classes
    return float(metrics.roc_auc_score(one_hot, probabilities, average="macro"))


def calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error over equal-width bins of confidence (Guo et al. 2017, arXiv:1706.04599, eq. 3)."""
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    # Bins are (a, b], as in the paper.
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(place, weights=correct - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(labels))


def probabilities(rows: Predictions) -> np.ndarray:
    """[N, classes], float64, rows that sum to one."""
    found = rows["probabilities"].astype(np.float64)
    return found / found.sum(-1, keepdims=True)


def _train_metric(outputs: Mapping[str, Any], batch: Arrays) -> jax.Array:
    return outputs["logits"].argmax(-1) == batch["label"]


def _predict(outputs: Mapping[str, Any], batch: Arrays) -> dict[str, jax.Array]:
    return {"probabilities": jax.nn.softmax(outputs["logits"])}


def _tune_on_validation(
    rows: Predictions, split: Split, valid_rows: Predictions, valid: Split, classes: tuple[str, ...]
) -> dict[str, Any]:
    thresholds = best_thresholds(valid.labels, probabilities(valid_rows))
    return metrics_at_thresholds(split.labels, probabilities(rows), thresholds, classes)


def _figure_data(rows: Predictions, split: Split, side: int, count: int) -> dict[str, np.ndarray]:
    chances = probabilities(rows)
    wrong = worst_first(split.labels, chances)[:count]
    return {"label": split.labels, "probabilities": chances, "worst": wrong, "images": split.images[wrong]}


def worst_first(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Indices of the wrongly classified images, the least probability of the true class first."""
    wrong = np.flatnonzero(probabilities.argmax(1) != labels)
    return wrong[np.argsort(probabilities[wrong, labels[wrong]], kind="stable")]


def _figures(data: Predictions, test: Mapping[str, Any], classes: Sequence[str], folder: Path) -> dict[str, Path]:
    from tljax.report import figures  # Matplotlib takes a second to import

    worst, labels, chances, path = data["worst"], data["label"], data["probabilities"], folder / "most_wrong.png"
    if len(worst):
        figures.draw_worst(data["images"], labels[worst], chances[worst], classes, path, len(worst))
    else:
        figures.draw_message(f"Nothing is wrong: all {len(labels):,} pictures are correct.", path)
    return {
        "confusion": figures.draw_confusion(test["confusion"], classes, folder / "confusion.png"),
        "roc": figures.draw_roc(labels, chances, classes, folder / "roc.png"),
        "most_wrong": path,
    }


def _write_predictions(found: PredictionSet, top: int = 5) -> Iterator[tuple[dict[str, Any], str]]:
    for row in probabilities(found.predictions):
        order = np.argsort(-row, kind="stable")[:top]
        best = [{"class": found.classes[i], "probability": float(row[i])} for i in order]
        yield {"top": best}, "  ".join(f"{c['class']} {100 * c['probability']:.1f} %" for c in best)


CLASSIFICATION = Task(
    name="classification",
    heads=("classifier",),
    metrics=METRICS,
    train_metric_name="accuracy",
    label_loss="cross_entropy",
    train_metric=_train_metric,
    predict=_predict,
    compute_metrics=lambda rows, split, side: compute_metrics(split.labels, probabilities(rows)),
    class_metrics=lambda rows, split, side, classes: class_metrics(split.labels, probabilities(rows), classes),
    figure_data=_figure_data,
    figures=_figures,
    write_predictions=_write_predictions,
    tune_on_validation=_tune_on_validation,
    spatial=False,
)
