"""A worker: one framework in a process of its own, which prepares steps and runs them when a driver says so.

Driver and workers talk in lines of JSON. A worker sleeps on its standard input while others are timed.
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


class Peer(NamedTuple):
    """A framework.

    Attributes:
      variants: from a task to {variant: make}; make() returns a step, which does one batch and waits for it, the FLOPs
        of the step where the framework counts them, else None, and perhaps a function that tells facts about it.
      modules: those it cannot do without, the first of which knows the device.
    """

    variants: Callable[[dict], dict[str, Callable]]
    modules: tuple[str, ...]


def work(peer: str, threads: int, peers: dict[str, Peer]) -> None:
    """A worker of one of the peers: answers each line of standard input with one line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log
    if hasattr(os, "sched_setaffinity"):  # the one limit on threads that every framework obeys
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    os.environ["KERAS_BACKEND"] = peer.removeprefix("keras-")  # read at the first import
    sys.path.insert(0, str(REPO))
    # The module describes the shapes of torchvision's compiled operators, which the networks do not use, and fails
    # where these are missing or were built for another PyTorch.
    sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")
    answer = Worker(peers[peer]).answer
    for line in sys.stdin:
        try:
            reply = answer(**json.loads(line))
        except ModuleNotFoundError as error:
            reply = {"missing": error.name}
        except Exception as error:
            reply = {"error": shortened(error)}
        print(json.dumps(reply), file=answers, flush=True)


class Worker:
    """What a worker holds: the fastest variant's step of the latest task."""

    def __init__(self, peer: Peer):
        self.peer, self.step, self.batch, self.facts = peer, None, 0, dict

    def answer(self, do: str, **request) -> dict:
        """Answers one request of the driver."""
        return getattr(self, do)(**request)

    def hello(self) -> dict:
        """The versions, or ModuleNotFoundError; and the device."""
        modules = [importlib.import_module(name) for name in self.peer.modules]
        first = modules[0]
        device = {
            "jax": lambda: first.default_backend(),
            "torch": lambda: "gpu" if first.cuda.is_available() else "cpu",
            "tensorflow": lambda: "gpu" if first.config.list_physical_devices("GPU") else "cpu",
        }[first.__name__]()
        named = [f"{m.__name__} {m.__version__}" for m in modules if hasattr(m, "__version__")]
        return {"versions": ", ".join(named), "device": device}

    def prepare(self, **task) -> dict:
        """Compiles every variant, or the one that the task names, tries each for a moment and keeps the fastest."""
        self.step, self.batch, self.facts = None, task["batch"], dict
        gc.collect()
        best, trials, errors = {}, {}, {}
        for name, make in self.peer.variants(task).items():
            if task.get("variant", name) != name:
                continue
            try:
                step, flops, *facts = make()
                step()  # compiles
                step()
                trials[name] = self.batch * repeat(step, task["trial"])
            except Exception as error:  # torch.compile wants a C++ compiler, and XLA lacks some of TensorFlow
                errors[name] = shortened(error)
                continue
            if trials[name] == max(trials.values()):
                self.step, self.facts = step, facts[0] if facts else dict
                best = {"variant": name, "flops": flops and flops / self.batch}
        if self.step is None:
            raise RuntimeError("; ".join(errors.values()))
        return best | {"trials": trials, "errors": errors}

    def run(self, seconds: float) -> dict:
        """Pictures per second over a while."""
        return {"rate": self.batch * repeat(self.step, seconds)}

    def tell(self) -> dict:
        """Facts about the step, and the peak of memory so far: of the device where it counts, else of the process."""
        return {"peak_bytes": peak_bytes(self.peer.modules[0])} | self.facts()


def repeat(step: Callable[[], object], seconds: float) -> float:
    """Steps per second over at least `seconds` and one step."""
    count, start = 0, time.perf_counter()
    while True:
        step()
        count, passed = count + 1, time.perf_counter() - start
        if passed >= seconds:
            return count / passed


def shortened(error: Exception) -> str:
    """An error in one short line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
