"""What every item of run.py shares: settings, processes and result rows."""

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

from driver import WorkerError, WorkerProcess, environment

REPO = Path(__file__).resolve().parents[1]
KERAS_BACKENDS = {"keras-tensorflow": "tensorflow", "keras-jax": "jax", "keras-torch": "torch"}


@dataclasses.dataclass
class Bench:
    """One run of the benchmarks.

    Attributes:
      device: cpu or gpu.
      quick: use tiny sizes, to test the driver.
      rounds: number of rounds of turns.
      seconds: length of one turn.
      threads: number of cores that every process may use.
      peer_python: interpreter that has the peers.
      torch_compile: also time torch.compile.
      epochs_as_written: epochs of the scripts that take minutes.
      folder: temporary folder.
      on_status: called with a description of the current step.
      results: rows of the items that ran before, by item.
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
    on_status: Callable[[str], None]
    results: dict[str, list[dict]] = dataclasses.field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        """The environment of every process, without a compilation cache, which the items set themselves."""
        env = environment(self.threads, self.device == "cpu")
        return {name: value for name, value in env.items() if name != "JAX_COMPILATION_CACHE_DIR"}

    @contextlib.contextmanager
    def worker(self, framework: str) -> Iterator[WorkerProcess]:
        """Start a worker of training.py. Raises WorkerError if the framework or its device is missing."""
        python = sys.executable if framework in ("matmul", "triad", "tljax") else self.peer_python
        log = self.folder / f"{framework}-{time.monotonic_ns()}.log"
        process = WorkerProcess(framework, python, self.env, self.threads, log, "training.py")
        try:
            info = process.call("describe")
            if info["device"] != self.device:
                raise WorkerError(f"sees no {self.device} ({info['versions']})")
            yield process
        finally:
            process.close()

    def versions(self) -> dict[str, str]:
        """Return the versions of each framework, or the reason why it is not available."""
        versions = {}
        for framework in ("tljax", "torch", "keras-tensorflow", "keras-jax"):
            self.on_status(f"{framework}: version")
            try:
                with self.worker(framework) as worker:
                    versions[framework] = worker.call("describe")["versions"]
            except WorkerError as error:
                versions[framework] = str(error)
        return versions

    def run_process(self, command: Sequence[str], **env: str) -> tuple[float, str]:
        """Run a process to its end and return its seconds and its last line of output.

        Raises:
          WorkerError: the process failed, with the last line of its standard error.
        """
        start = time.perf_counter()
        process = subprocess.run(
            command, env=self.env | env, cwd=REPO, capture_output=True, text=True, errors="replace", check=False
        )
        seconds = time.perf_counter() - start
        if process.returncode:
            last_line = (process.stderr.strip().splitlines() or ["no output"])[-1]
            missing = last_line.partition("No module named ")[2]
            raise WorkerError(f"not installed ({missing})" if missing else last_line[:200])
        return seconds, (process.stdout.strip().splitlines() or [""])[-1]

    def run_script(self, file: str, *options: str, **env: str) -> tuple[float, dict]:
        """Run a file of scripts/ with the peers' interpreter and return its seconds and the JSON that it prints."""
        path = REPO / "benchmarks" / "scripts" / file
        seconds, line = self.run_process([self.peer_python, str(path), *options], **env)
        return seconds, json.loads(line)


def row(case: str, name: str, values: Sequence[float], unit: str, dtype: str = "float32", **fields) -> dict:
    """Return a row of the results.

    Args:
      case: rows of one case do the same work and are compared with each other.
      name: name of the row; those of this project begin with tljax.
      values: one value per round.
      unit: unit of the values; of units that end in /s more is better, of all others less.
      dtype: type of the computation.
      **fields: note, error, variant, accuracy, flops (per image) and other entries for the JSON file.
    """
    median = {"median": statistics.median(values)} if values else {}
    return {"case": case, "name": name, "dtype": dtype, "values": list(values), "unit": unit} | median | fields
