"""Tasks: classification, segmentation and detection, with their predictions and metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tljax import plugins
from tljax.errors import UserError, did_you_mean
from tljax.tasks import custom
from tljax.tasks.classification import CLASSIFICATION
from tljax.tasks.detection import DETECTION
from tljax.tasks.segmentation import SEGMENTATION
from tljax.tasks.task import Metric, PredictionSet, Task, compute_metrics

if TYPE_CHECKING:
    from tljax.config import Config

__all__ = [
    "TASKS",
    "Metric",
    "PredictionSet",
    "Task",
    "compute_metrics",
    "default_task",
    "get_task",
    "metrics_of",
    "task_of",
]

TASKS = {task.name: task for task in (CLASSIFICATION, SEGMENTATION, DETECTION)}


def default_task(head: str) -> Task:
    """Return the default task of a head: the first one that supports it; of a custom head, its attribute `task`."""
    if plugins.is_plugin(head):
        return custom.task_of_head(head, TASKS)
    return next(task for task in TASKS.values() if head in task.heads)


def get_task(name: str) -> Task:
    """Return a task.

    Args:
      name: key of `TASKS`, or `FILE.py:NAME` for a custom one.

    Raises:
      UserError: there is no such task.
    """
    if plugins.is_plugin(name):
        return custom.load_task(name, TASKS)
    if name not in TASKS:
        raise UserError(f'There is no task "{name}"{did_you_mean(name, TASKS)}')
    return TASKS[name]


def task_of(config: Config) -> Task:
    """Return the task of a config: `config.task`, or the default task of its head.

    Raises:
      UserError: there is no such task, or it does not support `model.head`.
    """
    if config.task is None:
        return default_task(config.model.head)
    task = get_task(config.task)
    # A custom head is written for the task that the config names.
    if config.model.head not in task.heads and not plugins.is_plugin(config.model.head):
        raise UserError(
            f"task={config.task!r} does not fit model.head={config.model.head!r}: take {' or '.join(task.heads)}."
        )
    return task


def metrics_of(config: Config) -> tuple[Metric, ...]:
    """Return the metrics of a config: those of its task, then `config.metrics`.

    Raises:
      UserError: there is no such metric, or two have the same name.
    """
    metrics = (*task_of(config).metrics, *(custom.load_metric(spec) for spec in config.metrics))
    names = [metric.name for metric in metrics]
    for name in names:
        if names.count(name) > 1 or name == "loss":
            raise UserError(f'metrics: "{name}" is the name of another metric: give it a different name.')
    return metrics
