"""Train a run from config to result, or several as one program; the test split is evaluated once, at the end."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from rich.console import Console

from tljax.config import Config
from tljax.data import DataSplits, Split
from tljax.errors import TrainingStopped
from tljax.features.feature_cache import FeatureCache
from tljax.models.params import Variables
from tljax.report import markdown
from tljax.report.loggers import MetricLogger, ProgressBar
from tljax.run import replica_groups
from tljax.run.experiment import Experiment, prepare
from tljax.run.provenance import peak_memory, provenance
from tljax.run.workdir import WorkDir
from tljax.storage.checkpoints import CheckpointManager
from tljax.tasks import Metric
from tljax.train.loop import Trainer
from tljax.train.replicas import Replicas
from tljax.train.run_state import RunState
from tljax.weights import params_hash

Result = dict | TrainingStopped


def train(config: Config, console: Console, *, open_test: bool = True, lines: bool = True) -> dict:
    """Train a config in its work directory, or resume it, and return the result.

    Args:
      config: with `workdir` set, and weights that exist.
      console: for the log.
      open_test: False: the test split stays closed, for runs that are only compared on validation. The result then has
        no `test` and is not written; a later call with True adds it.
      lines: whether to print a line per validation.

    Raises:
      UserError: invalid input, found before anything is written.
      TrainingStopped: a loss or update is not finite.
      Interrupted: a signal asked to stop; the state is saved.
    """
    (result,) = train_replicas([prepare(config)], console, open_test=open_test, lines=lines)
    if isinstance(result, TrainingStopped):
        raise result
    return result


def train_replicas(
    experiments: Sequence[Experiment], console: Console, *, open_test: bool = True, lines: bool = True
) -> list[Result]:
    """Train runs that differ in numbers alone as one program, and return their results in order.

    Runs at the same step train together. Each writes what it would have written alone. The result of a run that
    diverged is its TrainingStopped.

    Args:
      experiments: which differ in numbers alone, such as a group of `replica_groups.plan_groups`.
      console: for the log.
      open_test: as for `train`.
      lines: as for `train`.

    Raises:
      UserError: invalid input, found before anything is written.
      Interrupted: a signal asked to stop; the state is saved.
    """
    unfinished = [run for run in experiments if WorkDir(run.config.folder).read("result.json") is None]
    # Loaded before anything is written: weights that do not fit are an error.
    variables = unfinished[0].load_variables() if unfinished else {}
    with contextlib.ExitStack() as stack:
        workdirs = [stack.enter_context(WorkDir.create(run.config, run.inputs)) for run in experiments]
        results = [workdir.read("result.json") for workdir in workdirs]
        for workdir, result in zip(workdirs, results, strict=True):
            if result is not None and not (workdir.path / "report.md").exists():
                markdown.write_report(workdir.path)  # killed between result and report
            if result is not None and lines:
                console.print(f"{workdir.path} is finished; returning its result.", highlight=False)
        pending = [
            (run, workdir) for run, workdir, result in zip(experiments, workdirs, results, strict=True) if not result
        ]
        new_results = iter(_train(pending, variables, console, open_test, lines) if pending else [])
        return [result or next(new_results) for result in results]


def _train(
    pending: Sequence[tuple[Experiment, WorkDir]], variables: Variables, console: Console, open_test: bool, lines: bool
) -> list[Result]:
    started = time.monotonic()
    first = pending[0][0]
    predictor = first.predictor
    _print_warnings(first.data, console)
    variables = predictor.mesh.put_variables(variables)
    networks = {name: predictor.mesh.put_variables(teacher.load()) for name, teacher in first.networks.items()}
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(ProgressBar(console, predictor.task.train_metric_name, notes=lines))
        runs = [stack.enter_context(_run_state(run, workdir, console, lines)) for run, workdir in pending]
        seconds_before = [run.seconds_before() for run in runs]
        stop_requested = stack.enter_context(_stop_on_signal())
        features = FeatureCache(first.config, predictor.mesh, progress)
        for group in _at_same_step(runs):
            mode = replica_groups.batching_mode(first)
            trainer = Trainer(
                replicas=Replicas(group, variables, predictor.predict_fn(), predictor.mesh, mode),
                data=first.data,
                mesh=predictor.mesh,
                source_params=first.source_params(variables),
                networks=networks,
                features=features,
                progress=progress,
                stop_requested=stop_requested,
            )
            try:
                trainer.fit()
            except TrainingStopped as failure:  # raised only in a group of one run
                group[0].failure = failure
        results = []
        for (experiment, workdir), run, before in zip(pending, runs, seconds_before, strict=True):
            if run.failure:
                results.append(run.failure)
                continue
            result, figure_data = evaluate_best(experiment, run, variables, features, open_test)
            # Runs that trained together share the time equally.
            result["seconds"] = before + (time.monotonic() - started) / len(pending)
            result["peak_memory_bytes"] = peak_memory()
            if open_test:
                if experiment.config.report.figures:
                    workdir.write_arrays("figure_data.npz", figure_data)
                # Its presence marks the run as finished: the report can be redrawn from the files.
                workdir.write("result.json", result)
                markdown.write_report(workdir.path)
            results.append(result)
    return results


def _print_warnings(data: DataSplits, console: Console) -> None:
    """Print which files are left out, and how many images are in two splits."""
    warnings = []
    if duplicates := {pair: n for pair, n in data.duplicates.items() if n}:
        warnings.append(f"identical images in two splits: {duplicates}")
    for files, text in ((data.skipped, "skipped"), (data.ignored, "ignored, not an image or hidden")):
        if files:
            count = "1 file was" if len(files) == 1 else f"{len(files):,} files were"
            warnings.append(f"{count} {text}: {', '.join(files[:3])}{', ...' if len(files) > 3 else ''}")
    for warning in warnings:
        console.print(f"Warning: {warning}", style="yellow", highlight=False, markup=False)


@contextlib.contextmanager
def _run_state(experiment: Experiment, workdir: WorkDir, console: Console, lines: bool) -> Iterator[RunState]:
    """Open the checkpoints and the metrics file of a run."""
    config, task = experiment.config, experiment.predictor.task
    logger = MetricLogger(workdir.path, console, task, tensorboard=config.report.tensorboard, lines=lines)
    with CheckpointManager(workdir.path) as checkpoints, logger as log:
        yield RunState(config, experiment.plans, checkpoints, log)


def _at_same_step(runs: Sequence[RunState]) -> list[list[RunState]]:
    """Group the runs by phase and step."""
    groups: dict[tuple[int, int] | None, list[RunState]] = {}
    for run in runs:
        groups.setdefault(run.position(), []).append(run)
    return list(groups.values())


def evaluate_best(
    experiment: Experiment, run: RunState, variables: Variables, features: FeatureCache, open_test: bool
) -> tuple[dict, dict[str, np.ndarray]]:
    """Evaluate the best checkpoint on validation, and on the test split if `open_test`.

    Returns:
      The entries of result.json, and the arrays that the task's figures are drawn from.
    """
    checkpoints, predictor, data = run.checkpoints, experiment.predictor, experiment.data
    checkpoints.wait()
    best = variables | checkpoints.restore_params(checkpoints.best, variables)
    assert run.progress.best is not None  # every run is validated at its end
    best_phase = run.progress.best["phase"]
    plan = next(plan for plan in experiment.plans if plan.phase.name == best_phase)

    def evaluate(split: Split, name: str) -> tuple[dict, dict[str, np.ndarray]]:
        cached = None
        if (network := plan.cache_plan.cached_valid) is not None:  # stages that were frozen in the best phase
            name = f"{plan.phase.name}: {network.name}, {name}"
            cached = features.get(network, network.variables({}, best), split, name)
        return predictor.evaluate(best, split, cached)

    result: dict[str, Any] = provenance(experiment, run.progress) | {"parameters_digest": params_hash(best)}
    result["valid"], on_valid = evaluate(data.valid, "validation")
    figure_data = {}
    if open_test:
        test = data.test.open()
        result["test"], on_test = evaluate(test, "test")
        task = predictor.task
        if task.tune_on_validation is not None:
            result |= task.tune_on_validation(on_test, test, on_valid, data.valid, predictor.classes)
        result["gap"] = _gap(predictor.metrics, result["valid"], result["test"])
        checkpoints.save_frozen(best)
        report = experiment.config.report
        if report.figures:
            figure_data = task.figure_data(on_test, test, predictor.preprocess.side, report.num_worst)
    return result | {"features": features.summary()}, figure_data


def _gap(metrics: Sequence[Metric], valid: dict, test: dict) -> dict:
    """Return validation minus test for each metric; None if either is None."""
    names = (*(metric.name for metric in metrics), "loss")
    pairs = {name: (valid[name], test[name]) for name in names}
    return {key: None if None in pair else pair[0] - pair[1] for key, pair in pairs.items()}


@contextlib.contextmanager
def _stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether SIGINT or SIGTERM was received; a second signal ends the process."""
    received = []

    def handle(number, frame):
        if received:
            os._exit(128 + number)
        received.append(number)
        print("Stopping after this step; press Ctrl-C again to stop at once.", file=sys.stderr, flush=True)

    # Python allows only the main thread to install handlers.
    signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    previous = {s: signal.signal(s, handle) for s in signals}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
