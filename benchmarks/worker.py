"""A worker: one framework in its own process, which prepares and runs steps on request.

Driver and workers exchange lines of JSON. A worker sleeps on its standard input while other workers are timed.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from machine import peak_bytes

REPO = Path(__file__).resolve().parents[1]


class Framework(NamedTuple):
    """A framework to be timed.

    Attributes:
      variants: function from a task to {variant: make}. make() returns a step, a function that processes one batch and
        waits for the result; the step's FLOPs if the framework counts them, else None; and optionally a function that
        returns facts about the step.
      modules: names of the required modules; the first one reports the device.
    """

    variants: Callable[[dict], dict[str, Callable]]
    modules: tuple[str, ...]


def serve(name: str, threads: int, frameworks: dict[str, Framework]) -> None:
    """Run the worker of a framework: reply to each line of standard input with one line.

    Args:
      name: key of `frameworks`.
      threads: number of cores that the process may use.
      frameworks: the frameworks by name.
    """
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries goes to the log
    if hasattr(os, "sched_setaffinity"):  # the only limit on threads that every framework obeys
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    os.environ["KERAS_BACKEND"] = name.removeprefix("keras-")  # read at the first import
    sys.path.insert(0, str(REPO))
    # This module describes the shapes of torchvision's compiled operators, which the networks do not use. It fails to
    # import if they are missing or were built for another version of PyTorch.
    sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")
    worker = Worker(frameworks[name])
    for line in sys.stdin:
        try:
            reply = worker.handle(**json.loads(line))
        except ModuleNotFoundError as error:
            reply = {"missing": error.name}
        except Exception as error:
            reply = {"error": one_line(error)}
        print(json.dumps(reply), file=replies, flush=True)


class Worker:
    """The state of a worker: the step of the fastest variant of the latest task."""

    def __init__(self, framework: Framework):
        self.framework = framework
        self.step = None
        self.batch = 0
        self.facts = dict

    def handle(self, method: str, **arguments) -> dict:
        """Return the reply to one request of the driver: the result of a method."""
        return getattr(self, method)(**arguments)

    def describe(self) -> dict:
        """Return the versions of the modules and the device. Raises ModuleNotFoundError if a module is missing."""
        modules = [importlib.import_module(name) for name in self.framework.modules]
        first = modules[0]
        device = {
            "jax": lambda: first.default_backend(),
            "torch": lambda: "gpu" if first.cuda.is_available() else "cpu",
            "tensorflow": lambda: "gpu" if first.config.list_physical_devices("GPU") else "cpu",
        }[first.__name__]()
        versions = [f"{m.__name__} {m.__version__}" for m in modules if hasattr(m, "__version__")]
        return {"versions": ", ".join(versions), "device": device}

    def prepare(self, **task) -> dict:
        """Compile every variant, or only `task["variant"]`, time each briefly and keep the fastest."""
        self.step = None
        self.batch = task["batch"]
        self.facts = dict
        gc.collect()
        best, trials, errors = {}, {}, {}
        for name, make in self.framework.variants(task).items():
            if task.get("variant", name) != name:
                continue
            try:
                step, flops, *facts = make()
                step()  # compiles
                step()
                trials[name] = self.batch * steps_per_second(step, task["trial"])
            except Exception as error:  # torch.compile needs a C++ compiler, and XLA lacks some TensorFlow operations
                errors[name] = one_line(error)
                continue
            if trials[name] == max(trials.values()):
                self.step = step
                self.facts = facts[0] if facts else dict
                best = {"variant": name, "flops": flops and flops / self.batch}
        if self.step is None:
            raise RuntimeError("; ".join(errors.values()))
        return best | {"trials": trials, "errors": errors}

    def run(self, seconds: float) -> dict:
        """Return the images per second over `seconds`."""
        return {"rate": self.batch * steps_per_second(self.step, seconds)}

    def memory(self) -> dict:
        """Return the peak memory so far, of the device if the framework reports it, and the facts of the step."""
        return {"peak_bytes": peak_bytes(self.framework.modules[0])} | self.facts()


def steps_per_second(step: Callable[[], object], seconds: float) -> float:
    """Return the steps per second over at least `seconds` and one step."""
    count = 0
    start = time.perf_counter()
    while True:
        step()
        count += 1
        elapsed = time.perf_counter() - start
        if elapsed >= seconds:
            return count / elapsed


def one_line(error: Exception) -> str:
    """Return an error as one short line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
