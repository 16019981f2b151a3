"""What every item of run.py is given: settings, processes, and the rows that come of them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from driver import Failed, Process, environment

REPO = Path(__file__).resolve().parents[1]
KERAS_OF = {"keras-tensorflow": "tensorflow", "keras-jax": "jax", "keras-torch": "torch"}


@dataclasses.dataclass
class Bench:
    """One run of the benchmarks.

    Attributes:
      device: cpu or gpu.
      quick: whether sizes are tiny, to try the driver.
      rounds: of turns.
      seconds: of one turn.
      threads: that every process may use.
      peer_python: the interpreter that has the peers.
      torch_compile: whether torch.compile is tried too.
      epochs_as_written: of the scripts that take minutes.
      folder: for files that are not kept.
      say: hears what is being done.
      kept: rows of items that ran before, by item.
    """

    device: str
    quick: bool
    rounds: int
    seconds: float
    threads: int
    peer_python: str
    torch_compile: bool
    epochs_as_written: int
    folder: Path
    say: Callable[[str], None]
    kept: dict[str, list[dict]] = dataclasses.field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        """Of every process; where compiled programs are kept is for items to say."""
        env = environment(self.threads, self.device == "cpu")
        return {name: value for name, value in env.items() if name != "JAX_COMPILATION_CACHE_DIR"}

    @contextlib.contextmanager
    def worker(self, peer: str) -> Iterator[Process]:
        """A fresh worker of training.py; raises Failed where the framework is missing or has no such device."""
        python = sys.executable if peer in ("matmul", "triad", "tljax") else self.peer_python
        log = self.folder / f"{peer}-{time.monotonic_ns()}.log"
        process = Process(peer, python, self.env, self.threads, log, "training.py")
        try:
            found = process.ask("hello")
            if found["device"] != self.device:
                raise Failed(f"sees no {self.device} ({found['versions']})")
            yield process
        finally:
            process.close()

    def versions(self) -> dict[str, str]:
        """Of each framework, or why it is not there."""
        found = {}
        for peer in ("tljax", "torch", "keras-tensorflow", "keras-jax"):
            self.say(f"{peer}: which version")
            try:
                with self.worker(peer) as worker:
                    found[peer] = worker.ask("hello")["versions"]
            except Failed as error:
                found[peer] = str(error)
        return found

    def whole(self, command: Sequence[str], **env: str) -> tuple[float, str]:
        """Runs a process to its end; returns its seconds and its last line. Raises Failed."""
        start = time.perf_counter()
        done = subprocess.run(
            command, env=self.env | env, cwd=REPO, capture_output=True, text=True, errors="replace", check=False
        )
        seconds = time.perf_counter() - start
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            missing = last.partition("No module named ")[2]
            raise Failed(f"not installed ({missing})" if missing else last[:200])
        return seconds, (done.stdout.strip().splitlines() or [""])[-1]

    def script(self, name: str, *options: str, **env: str) -> tuple[float, dict]:
        """Runs one of scripts/ with the peers' interpreter; returns its seconds and what it printed."""
        seconds, line = self.whole([self.peer_python, str(REPO / "benchmarks" / "scripts" / name), *options], **env)
        return seconds, json.loads(line)


def row(case: str, who: str, values: Sequence[float], unit: str, dtype: str = "float32", **more) -> dict:
    """A row of the results.

    Args:
      case: rows of one case do the same work and are held against each other.
      who: the name of the row; those of this project begin with tljax.
      values: one of each round; `median` is theirs.
      unit: of the values; `pictures/s` and the like are better when there are more, all others when there are fewer.
      dtype: of the computation.
      more: note, error, variant, accuracy, flops (of a picture) and whatever else is worth keeping in the JSON.
    """
    median = {"median": statistics.median(values)} if values else {}
    return {"case": case, "who": who, "dtype": dtype, "values": list(values), "unit": unit} | median | more
