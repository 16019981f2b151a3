"""One run from config to result: checked first, then trained, then the test split is opened once."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from rich.console import Console

from tljax.config import Config
from tljax.data import Split
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
from tljax.tasks import Task
from tljax.train.loop import Trainer
from tljax.train.run_state import RunState
from tljax.weights import params_hash


def train(config: Config, console: Console, *, open_test: bool = True, lines: bool = True) -> dict:
    """Runs a config in its workdir, or goes on with it, and returns the result.

    Args:
      config: with `workdir` set, and weights that exist.
      console: for the log.
      open_test: False leaves the test split closed, for runs that only validation chooses from; the result then has
        no `test` and is not written, and another call with True goes on from there.
      lines: whether each validation gets a line.

    Raises:
      UserError: bad input, found before anything is written.
      TrainingStopped: loss or update is not finite.
      Interrupted: a signal asked to stop; the state is saved.
    """
    (result,) = train_replicas([prepare(config)], console, open_test=open_test, lines=lines)
    if isinstance(result, TrainingStopped):
        raise result
    return result


def train_replicas(
    experiments: Sequence[Experiment], console: Console, *, open_test: bool = True, lines: bool = True
) -> list[dict | TrainingStopped]:
    """`train` of runs that differ in nothing but numbers: their results in order, or why one has none.

    They are one compiled program, and those that stand at the same step go on together; what each writes is what it
    would have written alone.
    """
    unfinished = [run for run in experiments if WorkDir(run.config.workdir).read("result.json") is None]
    # Before anything is written: weights that do not fit are an error.
    leaves = unfinished[0].load_variables() if unfinished else {}
    with contextlib.ExitStack() as stack:
        workdirs = [stack.enter_context(WorkDir.create(run.config, run.inputs)) for run in experiments]
        results = [workdir.read("result.json") for workdir in workdirs]
        for workdir, result in zip(workdirs, results, strict=True):
            if result is not None and not (workdir.path / "report.md").exists():
                markdown.write(workdir.path)  # killed after the result, before its report
            if result is not None and lines:
                console.print(f"{workdir.path} is finished; this is its result.", highlight=False)
        if todo := [i for i, result in enumerate(results) if result is None]:
            new = _train([experiments[i] for i in todo], [workdirs[i] for i in todo], leaves, console, open_test, lines)
            results = [result or new.pop(0) for result in results]
    return results


def _train(
    runs: list[Experiment], workdirs: list[WorkDir], leaves: Variables, console: Console, open_test: bool, lines: bool
) -> list[dict | TrainingStopped]:
    started, first = time.monotonic(), runs[0]
    if shared := {pair: n for pair, n in first.data.duplicates.items() if n}:
        console.print(f"Warning: identical pictures stand in two splits: {shared}", style="yellow", highlight=False)
    network = first.predictor
    leaves = network.mesh.put_variables(leaves)
    observed = {name: network.mesh.put_variables(teacher.load()) for name, teacher in first.networks.items()}
    with contextlib.ExitStack() as stack:
        log, members = stack.enter_context(ProgressBar(console, network.task.train_metric_name, notes=lines)), []
        for run, workdir in zip(runs, workdirs, strict=True):
            checkpoints = stack.enter_context(CheckpointManager(workdir.path))
            events = run.config.report.tensorboard
            rows = stack.enter_context(
                MetricLogger(workdir.path, console, network.task, tensorboard=events, lines=lines)
            )
            members.append(RunState(run.config, run.plans, checkpoints, rows))
        before = [member.seconds_before() for member in members]
        stop_asked, keeper = stack.enter_context(_stop_on_signal()), FeatureCache(first.config, network.mesh, log)
        for group in _at_one_place(members):
            fit = Trainer(
                members=group,
                data=first.data,
                mesh=network.mesh,
                predict=network.predict_fn(),
                source=first.source_params(leaves),
                observed=observed,
                keeper=keeper,
                log=log,
                stop_asked=stop_asked,
                how=replica_groups.batching_mode(first),
            )
            try:
                fit.run(leaves)
            except TrainingStopped as failure:  # of one that is alone
                group[0].failure = failure
        results = []
        for run, member, workdir, seconds in zip(runs, members, workdirs, before, strict=True):
            # Of what runs took together, each has its share.
            total = seconds + (time.monotonic() - started) / len(runs)
            finish = functools.partial(_finish, run, member, workdir, keeper, leaves, total, open_test)
            results.append(member.failure or finish())
    return results


def _at_one_place(members: list[RunState]) -> list[list[RunState]]:
    """The members in groups that stand at the same step of the same phase."""
    groups: dict[tuple, list[RunState]] = {}
    for member in members:
        latest = member.checkpoints.latest
        progress = {} if latest is None else member.checkpoints.progress(latest)
        groups.setdefault((progress.get("phase"), progress.get("step")), []).append(member)
    return list(groups.values())


def _finish(
    run: Experiment,
    member: RunState,
    workdir: WorkDir,
    keeper: FeatureCache,
    leaves: Variables,
    seconds: float,
    open_test: bool,
) -> dict:
    """Evaluates the best validation model, on the test split too if that is to be opened, and writes what is known."""
    checkpoints, network = member.checkpoints, run.predictor
    checkpoints.wait()
    best = leaves | checkpoints.restore_params(checkpoints.best, leaves)
    phase = next(plan for plan in run.plans if plan.phase.name == member.progress.best["phase"])

    def judge(split: Split, what: str) -> tuple[dict, dict[str, np.ndarray]]:
        maps = None
        if (
            prefix := phase.cache_plan.cached_valid
        ) is not None:  # frozen in this phase, so the best has it as the phase had
            maps = keeper.get(prefix, prefix.variables({}, best), split, f"{phase.phase.name}: {prefix.name}, {what}")
        return network.evaluate(best, split, maps)

    result = provenance(run, member.progress) | {"parameters_digest": params_hash(best)}
    result["valid"], on_valid = judge(run.data.valid, "validation")
    if open_test:
        test = run.data.test.open()
        result["test"], answers = judge(test, "test")
        if (tuned := network.task.tune_on_validation) is not None:
            result |= tuned(answers, test, on_valid, run.data.valid, network.classes)
        result["gap"] = _gap(network.task, result["valid"], result["test"])
    result |= {"features": keeper.summary(), "seconds": seconds, "peak_memory_bytes": peak_memory()}
    if open_test:
        checkpoints.save_frozen(best)
        if run.config.report.figures:
            count, side = run.config.report.num_worst, network.preprocess.size
            workdir.write_arrays("figure_data.npz", network.task.figure_data(answers, test, side, count))
        # Its presence says that the run is finished; the report is drawn from the files, and can be drawn again.
        workdir.write("result.json", result)
        markdown.write(workdir.path)
    return result


def _gap(task: Task, valid: dict, test: dict) -> dict:
    """Validation minus test; None where either is."""
    pairs = {k: (valid[k], test[k]) for k in (*dict(task.metrics), "loss")}
    return {k: None if None in pair else pair[0] - pair[1] for k, pair in pairs.items()}


@contextlib.contextmanager
def _stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C or SIGTERM into a wish that the loop asks for; the second one ends the process."""
    asked = []

    def ask(number, frame):
        if asked:
            os._exit(128 + number)
        asked.append(number)
        print("Stopping after this step; once more stops at once.", file=sys.stderr, flush=True)

    # Handlers belong to the main thread; in another one, nobody asks.
    signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {s: signal.signal(s, ask) for s in signals}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
