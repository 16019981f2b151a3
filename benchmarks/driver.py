"""The driver's side: workers (worker.py) seen from outside, and measuring them in turns."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

CPU = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}


class Failed(Exception):
    """A worker could not do what it was asked."""


class Process:
    """A worker seen from the driver.

    Args:
      peer: which of the script's frameworks it is.
      python: the interpreter.
      env: of the process.
      threads: that it may use.
      log: file for what it prints to standard error.
      script: that has the frameworks, beside this file.
    """

    def __init__(
        self, peer: str, python: str, env: Mapping[str, str], threads: int, log: Path, script: str = "frameworks.py"
    ):
        self.peer, self.log = peer, log
        self.process = subprocess.Popen(
            [python, str(Path(__file__).with_name(script)), peer, str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log.open("w"), env=env, text=True,
        )  # fmt: skip

    def ask(self, do: str, **request) -> dict:
        """Sends a request and waits for the answer."""
        try:
            print(json.dumps({"do": do} | request), file=self.process.stdin, flush=True)
            reply = json.loads(self.process.stdout.readline())
        except (OSError, ValueError):
            last = (self.log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
            raise Failed(f"the worker died: {last[:200]}") from None
        if "missing" in reply:
            raise Failed(f"not installed ({reply['missing']})")
        if "error" in reply:
            raise Failed(reply["error"])
        return reply

    def close(self) -> None:
        """Ends the worker: at the end of its input, or by force if it is in the middle of something."""
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def environment(threads: int, cpu: bool) -> dict[str, str]:
    """What processes of all frameworks get; `cpu` hides GPUs from them."""
    # Whether PyTorch's threads spin while they wait is left as it is: with OMP_WAIT_POLICY=ACTIVE they would through
    # the others' turns, with PASSIVE they are slower on a quiet machine.
    env = {"TF_CPP_MIN_LOG_LEVEL": "2"} | os.environ | {"OMP_NUM_THREADS": str(threads)}
    # Several frameworks share one GPU: none may take its memory for itself.
    env |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    return env | (CPU if cpu else {})


def in_turns(
    entrants: Mapping[str, tuple[Process, dict]], rounds: int, seconds: float, say: Callable[[str], None]
) -> list[dict]:
    """Prepares a task in each worker, then lets each run for a while in every round; returns a row of each.

    Args:
      entrants: worker and task, by name; no worker stands in two.
      rounds: how many.
      seconds: of one turn.
      say: hears what is done, once for each entrant and once more for each round.

    Returns:
      Rows with `peer` (the name), `rates` (pictures per second of each round), what the worker said of its step, and
      `error` where something failed.
    """
    rows, turns = {}, list(entrants)
    for name, (worker, task) in entrants.items():
        say(f"{name} compiles")
        rows[name] = {"peer": name, "rates": [], "variant": None, "flops": None}
        try:
            start = time.perf_counter()
            rows[name] |= worker.ask("prepare", **task)
            rows[name]["prepare_seconds"] = time.perf_counter() - start
        except Failed as error:
            rows[name]["error"] = str(error)
            turns.remove(name)
    for _ in range(rounds):
        for name in turns:
            say(f"{name} runs")
            time.sleep(0.2)  # threads of the one before may spin for a while before they sleep
            try:
                rows[name]["rates"].append(entrants[name][0].ask("run", seconds=seconds)["rate"])
            except Failed as error:
                rows[name]["error"] = str(error)
        turns = turns[1:] + turns[:1]  # nobody always comes after the same one first in a round
    return list(rows.values())
