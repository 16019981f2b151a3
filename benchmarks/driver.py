"""The driver's side of the workers (worker.py): starting them, and timing them in turns."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

CPU = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}


class WorkerError(Exception):
    """A worker could not handle a request."""


class WorkerProcess:
    """A worker as the driver uses it.

    Args:
      name: the framework, a name in the script's table.
      python: path of the interpreter.
      env: environment of the process.
      threads: number of cores that it may use.
      log: file for its standard error.
      script: file beside this one that defines the frameworks.
    """

    def __init__(
        self, name: str, python: str, env: Mapping[str, str], threads: int, log: Path, script: str = "frameworks.py"
    ):
        self.name = name
        self.log = log
        self.process = subprocess.Popen(
            [python, str(Path(__file__).with_name(script)), name, str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log.open("w"), env=env, text=True,
        )  # fmt: skip

    def call(self, method: str, **arguments) -> dict:
        """Call a method of the worker and return its reply.

        Raises:
          WorkerError: a module is missing, the method failed, or the process ended.
        """
        try:
            print(json.dumps({"method": method} | arguments), file=self.process.stdin, flush=True)
            reply = json.loads(self.process.stdout.readline())
        except (OSError, ValueError):
            last_line = (self.log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
            raise WorkerError(f"the worker ended: {last_line[:200]}") from None
        if "missing" in reply:
            raise WorkerError(f"not installed ({reply['missing']})")
        if "error" in reply:
            raise WorkerError(reply["error"])
        return reply

    def close(self) -> None:
        """End the worker by closing its input; kill it if it does not end within five seconds."""
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def environment(threads: int, cpu: bool) -> dict[str, str]:
    """Return the environment of all workers; `cpu` hides GPUs from them."""
    # OMP_WAIT_POLICY is not set: with ACTIVE, PyTorch's threads would spin during the turns of others; with PASSIVE
    # they are slower on an idle machine.
    env = {"TF_CPP_MIN_LOG_LEVEL": "2"} | os.environ | {"OMP_NUM_THREADS": str(threads)}
    # Several frameworks share one GPU: none may reserve its whole memory.
    env |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    return env | (CPU if cpu else {})


def time_in_turns(
    workers: Mapping[str, tuple[WorkerProcess, dict]], rounds: int, seconds: float, on_status: Callable[[str], None]
) -> list[dict]:
    """Prepare a task in each worker, then run each for a while in every round.

    Args:
      workers: {name: (worker, task)}; a worker appears only once.
      rounds: number of rounds.
      seconds: length of one turn.
      on_status: called with a description of each step, once per worker and once more per round.

    Returns:
      A row per worker with `peer` (the name), `rates` (images per second of each round), the worker's reply to
      `prepare`, and `error` if something failed.
    """
    rows = {}
    order = list(workers)
    for name, (worker, task) in workers.items():
        on_status(f"{name} compiles")
        rows[name] = {"peer": name, "rates": [], "variant": None, "flops": None}
        try:
            start = time.perf_counter()
            rows[name] |= worker.call("prepare", **task)
            rows[name]["prepare_seconds"] = time.perf_counter() - start
        except WorkerError as error:
            rows[name]["error"] = str(error)
            order.remove(name)
    for _ in range(rounds):
        for name in order:
            on_status(f"{name} runs")
            time.sleep(0.2)  # threads of the previous worker may spin for a while before they sleep
            try:
                rows[name]["rates"].append(workers[name][0].call("run", seconds=seconds)["rate"])
            except WorkerError as error:
                rows[name]["error"] = str(error)
        order = order[1:] + order[:1]  # so that no worker is first in every round
    return list(rows.values())
