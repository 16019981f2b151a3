"""One run from config to result: checked first, then trained, then the test split is opened once."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import numpy as np
from rich.console import Console

from tljax import config as schema
from tljax.checkpoints import Checkpoints
from tljax.config import Config
from tljax.data import Split
from tljax.report import figures, report
from tljax.report.blocks import blocks, rows
from tljax.report.log import RunLog, read_rows
from tljax.run.prepare import Prepared, prepare
from tljax.run.workdir import WorkDir
from tljax.tasks import classification
from tljax.train.loop import Fit, Progress
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
    started = time.monotonic()
    prepared = prepare(config)
    config, workdir = prepared.config, WorkDir(config.workdir)
    workdir.check(config, prepared.inputs)
    if (finished := workdir.read("result.json")) is not None:
        if lines:
            console.print(f"{workdir.path} is finished; this is its result.", highlight=False)
        return finished
    if shared := {pair: n for pair, n in prepared.data.shared_pictures.items() if n}:
        console.print(f"Warning: identical pictures stand in two splits: {shared}", style="yellow", highlight=False)
    network = prepared.network
    leaves = network.mesh.put(prepared.load_weights())
    observed = {name: network.mesh.put(teacher.read()) for name, teacher in prepared.observed.items()}
    workdir.claim(config, prepared.inputs)
    with workdir, Checkpoints(workdir.path) as checkpoints, _stop_on_signal() as stop_asked:
        latest = checkpoints.latest
        before = checkpoints.progress(latest)["seconds"] if latest is not None else 0.0
        with RunLog(workdir.path, console, tensorboard=config.report.tensorboard, lines=lines) as log:
            fit = Fit(
                config=config,
                data=prepared.data,
                mesh=network.mesh,
                predict=network.predictor(),
                source=prepared.source_leaves(leaves),
                observed=observed,
                checkpoints=checkpoints,
                log=log,
                stop_asked=stop_asked,
            )
            progress = fit.run(prepared.plans, leaves)
        checkpoints.wait()
        best = checkpoints.restore(checkpoints.best, {"params": leaves})["params"]
        result = _provenance(prepared, progress) | {"parameters_digest": parameters_digest(best)}
        result["valid"], _ = network.judge(best, prepared.data.valid)
        if open_test:
            test = prepared.data.test.open()
            result["test"], probabilities = network.judge(best, test)
            result["gap"] = _gap(result["valid"], result["test"])
        result |= {"seconds": before + time.monotonic() - started, "peak_memory_bytes": _peak_memory()}
        if open_test:
            _report(workdir, prepared, result, test, probabilities)
            # The last file: its presence says that the run is finished.
            workdir.write("result.json", result)
    return result


def _provenance(prepared: Prepared, progress: Progress) -> dict:
    config, source = prepared.config, prepared.source
    return {
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


def _gap(valid: dict, test: dict) -> dict:
    """Validation minus test; None where either is."""
    pairs = {k: (valid[k], test[k]) for k in classification.SCALARS}
    return {k: None if None in pair else pair[0] - pair[1] for k, pair in pairs.items()}


def _report(workdir: WorkDir, prepared: Prepared, result: dict, test: Split, probabilities: np.ndarray) -> None:
    config, classes, drawn = prepared.config, list(prepared.data.classes), {}
    history, folder = read_rows(workdir.path / "metrics.jsonl"), workdir.path / "figures"
    if config.report.figures:
        count = config.report.most_wrong
        drawn = {
            "blocks": blocks(rows(prepared.plans, prepared.network.model, config.optim.lr), folder / "blocks.png"),
            "curves": figures.curves(history, folder / "curves.png"),
            "confusion": figures.confusion(result["test"]["confusion"], classes, folder / "confusion.png"),
            "roc": figures.roc(test.labels, probabilities, classes, folder / "roc.png"),
            "most_wrong": figures.most_wrong(
                test.images, test.labels, probabilities, classes, folder / "most_wrong.png", count
            ),
        }
    report.write(workdir.path, result, schema.to_dict(config), history, drawn, classes)


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


@contextmanager
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
