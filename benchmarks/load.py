"""Measure the time and host memory from a weight file to a model on its device: see README.md."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from frameworks import CLASSES, VGG_HEAD
from worker import REPO


def measure_loading(args) -> dict:
    """Time loading in a fresh process per round and return the settings and the times."""
    with tempfile.TemporaryDirectory() as folder:
        path = args.file or str(Path(folder) / "random.safetensors")
        if not args.file:
            run_command(sys.executable, __file__, "--step=write", f"--model={args.model}", path)
        rounds = []
        for _ in range(args.rounds):
            output = run_command(sys.executable, __file__, "--step=read", f"--model={args.model}", path)
            rounds.append(json.loads(output))
            print(f"{args.model}: " + ", ".join(f"{k} {v:.3f}" for k, v in rounds[-1].items()))
    return {"settings": vars(args), "rounds": rounds}


def run_command(*command: str) -> str:
    """Return the output of a command."""
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout


def run_step(step: str, name: str, path: str) -> None:
    """Write random weights with torchvision's names, or load a file and print the times, in this process."""
    times = {}
    last = time.perf_counter()

    def record(label: str) -> None:
        nonlocal last
        now = time.perf_counter()
        times[f"{label} s"] = now - last
        last = now

    sys.path.insert(0, str(REPO))
    import jax
    from flax import nnx

    from tljax import models, weights
    from tljax.weights.formats import write_safetensors
    from tljax.weights.layouts import layouts

    record("import")
    jax.devices()
    record("start device")
    head = VGG_HEAD if name.startswith("vgg") else {}
    model = models.create_model(name, num_classes=CLASSES, rngs=nnx.Rngs(0) if step == "write" else None, **head)
    record("build")
    if step == "write":
        write_safetensors(path, weights.export_weights(model, layouts(model.family, model.config)["torchvision"]))
        return
    with MemorySampler() as memory:
        last = time.perf_counter()
        weights.load(model, path)
        record("load")
        jax.block_until_ready(jax.tree.leaves(nnx.state(model)))
        record("device ready")
    size = Path(path).stat().st_size
    ratios = {"peak memory / file": memory.peak / size, "memory kept / file": memory.kept / size}
    print(json.dumps(times | {"total s": sum(times.values())} | ratios | {"file MB": size / 1e6}))


class MemorySampler:
    """A context that samples the anonymous memory of the process, without pages of mapped files.

    Without Linux' /proc it samples the peak of all memory.

    Attributes:
      peak: maximum during the context, in bytes above the start.
      kept: memory at the end, in bytes above the start.
    """

    def __enter__(self) -> MemorySampler:
        self.start = self.peak = self.current()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.sample)
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop.set()
        self.thread.join()
        end = self.current()
        self.peak = max(self.peak, end) - self.start
        self.kept = end - self.start

    def sample(self) -> None:
        """Update the peak every millisecond until the context ends."""
        while not self.stop.wait(0.001):
            self.peak = max(self.peak, self.current())

    @staticmethod
    def current() -> int:
        """Return the current memory in bytes."""
        try:
            status = Path("/proc/self/status").read_text()
            return 1024 * int(status.split("RssAnon:")[1].split()[0])
        except (OSError, IndexError):
            import resource

            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", help="weights with torchvision's names; default: random weights")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", help="file for all results")
    parser.add_argument("--step", choices=("write", "read"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        return run_step(args.step, args.model, args.file)
    results = measure_loading(args)
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
