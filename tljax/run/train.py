"""One run from config to result: checked first, then trained, then the test split is opened once."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from rich.console import Console

from tljax import config as schema
from tljax.checkpoints import Checkpoints
from tljax.config import Config
from tljax.data import Split
from tljax.errors import TrainingStopped
from tljax.models.state import Leaves
from tljax.report.log import Bar, RunLog, read_rows
from tljax.run import together
from tljax.run.prepare import Prepared, prepare
from tljax.run.workdir import WorkDir
from tljax.tasks import Task
from tljax.train.keep import Keeper
from tljax.train.loop import Fit
from tljax.train.member import Member
from tljax.train.progress import Progress
from tljax.weights import parameters_digest

PACKAGES = ("tljax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scikit-learn")


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
    (result,) = train_together([prepare(config)], console, open_test=open_test, lines=lines)
    if isinstance(result, TrainingStopped):
        raise result
    return result


def train_together(
    runs: Sequence[Prepared], console: Console, *, open_test: bool = True, lines: bool = True
) -> list[dict | TrainingStopped]:
    """`train` of runs that differ in nothing but numbers: their results in order, or why one has none.

    They are one compiled program, and those that stand at the same step go on together; what each writes is what it
    would have written alone.
    """
    for run in runs:
        WorkDir(run.config.workdir).check(run.config, run.inputs)
    results = [WorkDir(run.config.workdir).read("result.json") for run in runs]
    for run, result in zip(runs, results, strict=True):
        if result is not None and lines:
            console.print(f"{run.config.workdir} is finished; this is its result.", highlight=False)
    if todo := [i for i, result in enumerate(results) if result is None]:
        made = _train([runs[i] for i in todo], console, open_test, lines)
        results = [result or made.pop(0) for result in results]
    return results


def _train(runs: list[Prepared], console: Console, open_test: bool, lines: bool) -> list[dict | TrainingStopped]:
    started, first = time.monotonic(), runs[0]
    if shared := {pair: n for pair, n in first.data.shared_pictures.items() if n}:
        console.print(f"Warning: identical pictures stand in two splits: {shared}", style="yellow", highlight=False)
    network = first.network
    leaves = network.mesh.put_leaves(first.load_weights())
    observed = {name: network.mesh.put_leaves(teacher.read()) for name, teacher in first.observed.items()}
    with contextlib.ExitStack() as stack:
        log, members = stack.enter_context(Bar(console, network.task.progress, notes=lines)), []
        for run in runs:
            workdir = WorkDir(run.config.workdir)
            workdir.claim(run.config, run.inputs)
            stack.enter_context(workdir)
            checkpoints = stack.enter_context(Checkpoints(workdir.path))
            events = run.config.report.tensorboard
            rows = stack.enter_context(RunLog(workdir.path, console, network.task, tensorboard=events, lines=lines))
            members.append(Member(run.config, run.plans, checkpoints, rows))
        before = [member.seconds_before() for member in members]
        stop_asked, keeper = stack.enter_context(_stop_on_signal()), Keeper(first.config, network.mesh, log)
        for group in _at_one_place(members):
            fit = Fit(
                members=group,
                data=first.data,
                mesh=network.mesh,
                predict=network.predictor(),
                source=first.source_leaves(leaves),
                observed=observed,
                keeper=keeper,
                log=log,
                stop_asked=stop_asked,
                how=together.how(first),
            )
            try:
                fit.run(leaves)
            except TrainingStopped as failure:  # of one that is alone
                group[0].failure = failure
        results = []
        for run, member, seconds in zip(runs, members, before, strict=True):
            # Of what runs took together, each has its share.
            share = (time.monotonic() - started) / len(runs)
            results.append(member.failure or _result(run, member, keeper, leaves, seconds + share, open_test))
    return results


def _at_one_place(members: list[Member]) -> list[list[Member]]:
    """The members in groups that stand at the same step of the same phase."""
    groups: dict[tuple, list[Member]] = {}
    for member in members:
        latest = member.checkpoints.latest
        progress = {} if latest is None else member.checkpoints.progress(latest)
        groups.setdefault((progress.get("phase"), progress.get("step")), []).append(member)
    return list(groups.values())


def _result(run: Prepared, member: Member, keeper: Keeper, leaves: Leaves, seconds: float, open_test: bool) -> dict:
    """Judges the best validation model, on the test split too if that is to be opened, and writes the report."""
    checkpoints, network, workdir = member.checkpoints, run.network, WorkDir(run.config.workdir)
    checkpoints.wait()
    best = leaves | checkpoints.changed(checkpoints.best, leaves)
    phase = next(plan for plan in run.plans if plan.phase.name == member.progress.best["phase"])

    def judge(split: Split, what: str) -> tuple[dict, dict[str, np.ndarray]]:
        maps = None
        if (prefix := phase.keeping.valid) is not None:  # frozen in this phase, so the best has it as the phase had
            maps = keeper.get(prefix, prefix.leaves({}, best), split, f"{phase.phase.name}: {prefix.name}, {what}")
        return network.judge(best, split, maps)

    result = _provenance(run, member.progress) | {"parameters_digest": parameters_digest(best)}
    result["valid"], on_valid = judge(run.data.valid, "validation")
    if open_test:
        test = run.data.test.open()
        result["test"], answers = judge(test, "test")
        if (tuned := network.task.tuned) is not None:
            result |= tuned(answers, test, on_valid, run.data.valid, network.classes)
        result["gap"] = _gap(network.task, result["valid"], result["test"])
    result |= {"features": keeper.once(), "seconds": seconds, "peak_memory_bytes": _peak_memory()}
    if open_test:
        checkpoints.write_frozen(best)
        _report(workdir, run, result, test, answers)
        # The last file: its presence says that the run is finished.
        workdir.write("result.json", result)
    return result


def _provenance(prepared: Prepared, progress: Progress) -> dict:
    config, source = prepared.config, prepared.source
    return {
        "task": prepared.network.task.name,
        "metric": prepared.network.task.metrics[0][0],
        "strategy": config.strategy.name,
        "phases": progress.phases,
        "best": progress.best,
        "seed": config.seed,
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in PACKAGES},
        "devices": [str(d) for d in jax.devices()],
        "weights": source.describe() if prepared.strategy.pretrained else None,
        "teachers": {name: teacher.describe() for name, teacher in prepared.observed.items()},
        "files": prepared.files,
        "preprocess": schema.to_dict(prepared.network.preprocess),
        "data": prepared.data.describe(),
        "config_digest": schema.digest(config),
    }


def _gap(task: Task, valid: dict, test: dict) -> dict:
    """Validation minus test; None where either is."""
    pairs = {k: (valid[k], test[k]) for k in (*dict(task.metrics), "loss")}
    return {k: None if None in pair else pair[0] - pair[1] for k, pair in pairs.items()}


def _report(workdir: WorkDir, prepared: Prepared, result: dict, test: Split, answers: dict[str, np.ndarray]) -> None:
    from tljax.report import report

    config, network, drawn = prepared.config, prepared.network, {}
    history, folder = read_rows(workdir.path / "metrics.jsonl"), workdir.path / "figures"
    if config.report.figures:
        from tljax.report import drawing  # Matplotlib takes a second to import

        drawn = drawing.draw(
            prepared.plans,
            network.model,
            config.optim.lr,
            network.task,
            list(network.classes),
            result,
            history,
            test,
            answers,
            folder,
            count=config.report.most_wrong,
            side=network.preprocess.size,
        )
    report.write(workdir.path, result, schema.to_dict(config), history, drawn, network.task, list(network.classes))


def _version(package: str) -> str:
    if package == "tljax":
        from tljax import __version__

        return __version__
    return importlib.metadata.version(package)


def _peak_memory() -> int:
    """Bytes: of the device where it keeps count, else of this process."""
    on_device = [d.memory_stats() for d in jax.local_devices()]
    if all(s and "peak_bytes_in_use" in s for s in on_device):
        return max(s["peak_bytes_in_use"] for s in on_device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


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
