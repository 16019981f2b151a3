"""Tasks and metrics from a file of the user, with one-line errors."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from tljax import plugins
from tljax.errors import UserError, did_you_mean
from tljax.models.heads import get_head
from tljax.tasks.task import Metric, Task


def load_task(spec: str, reserved: Collection[str]) -> Task:
    """Return a custom task.

    Args:
      spec: `FILE.py:NAME`, where NAME is a `Task`.
      reserved: names of the built-in tasks.

    Raises:
      UserError: NAME is not a task, or has the name of a built-in one.
    """
    return _checked_task(spec, plugins.load_plugin(spec, "task"), reserved)


def task_of_head(spec: str, built_in: Mapping[str, Task]) -> Task:
    """Return the attribute `task` of a custom head: a `Task`, or the name of a built-in one.

    Args:
      spec: `FILE.py:NAME`, where NAME is a subclass of `Head`.
      built_in: the built-in tasks by name.

    Raises:
      UserError: the head has no task.
    """
    task = get_head(spec).task
    if task is None:
        raise UserError(f"{spec} does not name its task: set task in the config, or the attribute task of the head.")
    if isinstance(task, str):
        if task not in built_in:
            raise UserError(f'{spec}.task: there is no task "{task}"{did_you_mean(task, built_in)}')
        return built_in[task]
    return _checked_task(f"{spec}.task", task, built_in)


def load_metric(spec: str) -> Metric:
    """Return a custom metric; a plain function becomes a metric with the function's name.

    Args:
      spec: `FILE.py:NAME`, where NAME is a `Metric`, or a function (predictions, split) → number or None.

    Raises:
      UserError: NAME is neither.
    """
    if not plugins.is_plugin(spec):
        raise UserError(f'metrics must be given as FILE.py:NAME, got "{spec}"; those of the task are always computed.')
    metric = plugins.load_plugin(spec, "metric")
    if isinstance(metric, Metric):
        if metric.compute is None:
            raise UserError(f"{spec} is a metric without a function: set compute.")
        return metric
    if not callable(metric) or not plugins.accepts(metric, {}, None):
        kind = "a function of other arguments" if callable(metric) else type(metric).__name__
        raise UserError(f"{spec} is not a metric: it must be a Metric or a function (predictions, split), got {kind}.")
    return Metric(spec.rpartition(":")[2], metric)


def _checked_task(spec: str, task: object, reserved: Collection[str]) -> Task:
    if not isinstance(task, Task):
        raise UserError(f"{spec} is not a task: it must be a tljax.tasks.Task, got {type(task).__name__}.")
    if task.name in reserved:
        raise UserError(f'{spec}: "{task.name}" is the name of a built-in task: choose another name.')
    return task
