"""Classification: predictions and metrics, by scikit-learn where it has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tljax.data import Split
from tljax.report.ranking import worst_first
from tljax.tasks.task import Arrays, Metric, Predictions, PredictionSet, Task

# scikit-learn has no annotations, and this argument is a string by default.
_ZERO: Any = 0

METRICS = (
    Metric("accuracy"),
    Metric("top5", title="top-5 accuracy"),
    Metric("precision_macro", title="precision, macro"),
    Metric("recall_macro", title="recall, macro"),
    Metric("f1_macro", title="F1, macro"),
    Metric("roc_auc", title="ROC AUC"),
    Metric("ece", higher_is_better=False, title="expected calibration error"),
)


def compute_metrics(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float | None]:
    """Return the scalar metrics of a split.

    Args:
      labels: integers [N].
      probabilities: [N, C], rows that sum to 1.

    Returns:
      The keys of `METRICS` and `loss`: accuracy; top-5 accuracy; precision, recall and F1 averaged over classes;
      one-vs-rest ROC AUC averaged over classes (None if a class has no image); expected calibration error; mean
      negative log-likelihood in nats.
    """
    from sklearn import metrics  # imported here: it takes a second, which would delay the first training step

    classes = np.arange(probabilities.shape[1])
    predicted = probabilities.argmax(1)
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        labels, predicted, labels=classes, average="macro", zero_division=_ZERO
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
    """Return precision, recall, F1 and support of every class, and the confusion matrix (rows are true classes)."""
    from sklearn import metrics

    index = np.arange(len(classes))
    predicted = probabilities.argmax(1)
    table: Any = metrics.precision_recall_fscore_support(labels, predicted, labels=index, zero_division=_ZERO)
    rows = zip(classes, *(column.tolist() for column in table), strict=True)
    return {
        "per_class": [dict(zip(("class", "precision", "recall", "f1", "support"), row, strict=True)) for row in rows],
        "confusion": metrics.confusion_matrix(labels, predicted, labels=index).tolist(),
    }


def best_thresholds(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the probability threshold of each class with the best one-vs-rest F1, [C].

    NaN for a class without images. Thresholds are chosen on the validation split and applied to the test split
    (Lipton et al. 2014, arXiv:1402.1892).
    """
    from sklearn import metrics

    best = np.full(probabilities.shape[1], np.nan)
    for index, scores in enumerate(probabilities.T):
        if (labels == index).any():
            precision, recall, thresholds = metrics.precision_recall_curve(labels == index, scores)
            # The last point has recall 0 and no threshold.
            f1 = (2 * precision * recall / np.maximum(precision + recall, 1e-12))[:-1]
            best[index] = thresholds[f1.argmax()]
    return best


def metrics_at_thresholds(
    labels: np.ndarray, probabilities: np.ndarray, thresholds: np.ndarray, classes: Sequence[str]
) -> dict[str, list[dict]]:
    """Return precision, recall and F1 of each class at its own threshold.

    Args:
      labels: integers [N].
      probabilities: [N, C].
      thresholds: [C], from `best_thresholds`; an image is of a class if its probability is at least the threshold.
      classes: names of the classes.

    Returns:
      {"thresholded": [{"class", "threshold", "precision", "recall", "f1"}, ...]}, None for all four of a class whose
      threshold is NaN.
    """
    from sklearn import metrics

    rows = []
    for index, (name, threshold) in enumerate(zip(classes, thresholds.tolist(), strict=True)):
        predicted = probabilities[:, index] >= threshold
        scores: Any = metrics.precision_recall_fscore_support(
            labels == index, predicted, average="binary", zero_division=_ZERO
        )
        values = [None] * 4 if np.isnan(threshold) else [threshold, *map(float, scores[:3])]
        rows.append({"class": name, **dict(zip(("threshold", "precision", "recall", "f1"), values, strict=True))})
    return {"thresholded": rows}


def roc_auc(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Return the macro-averaged one-vs-rest area under the ROC curve; None if a class has no image."""
    from sklearn import metrics

    classes = np.arange(probabilities.shape[1])
    if len(np.unique(labels)) < len(classes):
        return None
    one_hot = labels[:, None] == classes
    return float(metrics.roc_auc_score(one_hot, probabilities, average="macro"))


def calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = 15) -> float:
    """Return the expected calibration error (Guo et al. 2017, arXiv:1706.04599, eq. 3).

    Args:
      labels: integers [N].
      probabilities: [N, C].
      bins: number of equal-width bins of confidence.
    """
    confidence = probabilities.max(1)
    correct = probabilities.argmax(1) == labels
    # Bins are (a, b], as in the paper.
    bin_index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(bin_index, weights=correct - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(labels))


def probabilities(predictions: Predictions) -> np.ndarray:
    """Return the class probabilities in float64, [N, C], with rows that sum to 1."""
    values = predictions["probabilities"].astype(np.float64)
    return values / values.sum(-1, keepdims=True)


def _train_metric(outputs: Mapping[str, Any], batch: Arrays) -> jax.Array:
    return outputs["logits"].argmax(-1) == batch["label"]


def _predict(outputs: Mapping[str, Any], batch: Arrays) -> dict[str, jax.Array]:
    return {"probabilities": jax.nn.softmax(outputs["logits"])}


def _tune_on_validation(
    predictions: Predictions, split: Split, valid_predictions: Predictions, valid: Split, classes: tuple[str, ...]
) -> dict[str, Any]:
    thresholds = best_thresholds(valid.labels, probabilities(valid_predictions))
    return metrics_at_thresholds(split.labels, probabilities(predictions), thresholds, classes)


def _figure_data(predictions: Predictions, split: Split, side: int, count: int) -> dict[str, np.ndarray]:
    scores = probabilities(predictions)
    worst = worst_first(split.labels, scores)[:count]
    return {"label": split.labels, "probabilities": scores, "worst": worst, "images": split.images[worst]}


def _figures(data: Predictions, test: Mapping[str, Any], classes: Sequence[str], folder: Path) -> dict[str, Path]:
    from tljax.report import figures  # imported here: Matplotlib takes a second

    labels = data["label"]
    scores = data["probabilities"]
    worst = data["worst"]
    worst_path = folder / "most_wrong.png"
    if len(worst):
        figures.draw_worst(data["images"], labels[worst], scores[worst], classes, worst_path, len(worst))
    else:
        figures.draw_message(f"All {len(labels):,} images are classified correctly.", worst_path)
    return {
        "confusion": figures.draw_confusion(test["confusion"], classes, folder / "confusion.png"),
        "roc": figures.draw_roc(labels, scores, classes, folder / "roc.png"),
        "most_wrong": worst_path,
    }


def _write_predictions(prediction_set: PredictionSet, count: int = 5) -> Iterator[tuple[dict[str, Any], str]]:
    for scores in probabilities(prediction_set.predictions):
        order = np.argsort(-scores, kind="stable")[:count]
        top = [{"class": prediction_set.classes[i], "probability": float(scores[i])} for i in order]
        row = {"top": top, "probabilities": dict(zip(prediction_set.classes, scores.tolist(), strict=True))}
        yield row, "  ".join(f"{row['class']} {100 * row['probability']:.1f} %" for row in top)


CLASSIFICATION = Task(
    name="classification",
    heads=("classifier",),
    metrics=METRICS,
    train_metric_name="accuracy",
    label_loss="cross_entropy",
    train_metric=_train_metric,
    predict=_predict,
    compute_metrics=lambda predictions, split, side: compute_metrics(split.labels, probabilities(predictions)),
    class_metrics=lambda predictions, split, side, classes: class_metrics(
        split.labels, probabilities(predictions), classes
    ),
    figure_data=_figure_data,
    figures=_figures,
    write_predictions=_write_predictions,
    tune_on_validation=_tune_on_validation,
    spatial=False,
)
