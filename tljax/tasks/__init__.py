"""Tasks: classification, segmentation and detection, with their predictions and metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tljax.errors import UserError, did_you_mean
from tljax.tasks.classification import CLASSIFICATION
from tljax.tasks.detection import DETECTION
from tljax.tasks.segmentation import SEGMENTATION
from tljax.tasks.task import PredictionSet, Task

if TYPE_CHECKING:
    from tljax.config import Config

__all__ = ["TASKS", "PredictionSet", "Task", "default_task", "task_of"]

TASKS = {task.name: task for task in (CLASSIFICATION, SEGMENTATION, DETECTION)}


def default_task(head: str) -> Task:
    """Return the default task of a head: the first one that supports it."""
    return next(task for task in TASKS.values() if head in task.heads)


def task_of(config: Config) -> Task:
    """Return the task of a config: `config.task`, or the default task of its head.

    Raises:
      UserError: there is no such task, or it does not support `model.head`.
    """
    if config.task is None:
        return default_task(config.model.head)
    if config.task not in TASKS:
        raise UserError(f'There is no task "{config.task}"{did_you_mean(config.task, TASKS)}')
    task = TASKS[config.task]
    if config.model.head not in task.heads:
        raise UserError(
            f"task={config.task!r} does not fit model.head={config.model.head!r}: take {' or '.join(task.heads)}."
        )
    return task
