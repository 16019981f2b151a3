"""How long weights take from a file to a model on its device, and how much host memory: see README.md."""

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


def load(args) -> dict:
    """Times the way from nothing to a model on its device in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        path = args.file or str(Path(folder) / "random.safetensors")
        if not args.file:
            call(sys.executable, __file__, "--step=write", f"--model={args.model}", path)
        rounds = []
        for _ in range(args.rounds):
            rounds.append(json.loads(call(sys.executable, __file__, "--step=read", f"--model={args.model}", path)))
            print(f"{args.model}: " + ", ".join(f"{k} {v:.3f}" for k, v in rounds[-1].items()))
    return {"settings": vars(args), "rounds": rounds}


def call(*command: str) -> str:
    """The output of a command."""
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout


def load_step(step: str, name: str, path: str) -> None:
    """In a process of its own: writes random weights in torchvision's names, or reads a file and prints the times."""
    times, last = {}, time.perf_counter()

    def lap(what: str) -> None:
        nonlocal last
        now = time.perf_counter()
        times[f"{what} s"], last = now - last, now

    sys.path.insert(0, str(REPO))
    import jax
    from flax import nnx

    from tljax import models, weights
    from tljax.weights.formats import write_safetensors
    from tljax.weights.layouts import layouts

    lap("import")
    jax.devices()
    lap("start device")
    head = VGG_HEAD if name.startswith("vgg") else {}
    model = models.create_model(name, num_classes=CLASSES, rngs=nnx.Rngs(0) if step == "write" else None, **head)
    lap("build")
    if step == "write":
        write_safetensors(path, weights.export(model, layouts(model.family, model.config)["torchvision"]))
        return
    with Memory() as memory:
        last = time.perf_counter()
        weights.load(model, path)
        lap("load")
        jax.block_until_ready(jax.tree.leaves(nnx.state(model)))
        lap("device ready")
    size = Path(path).stat().st_size
    ratios = {"peak memory / file": memory.peak / size, "memory kept / file": memory.kept / size}
    print(json.dumps(times | {"total s": sum(times.values())} | ratios | {"file MB": size / 1e6}))


class Memory:
    """Samples the anonymous memory of the process, without pages of mapped files: peak and end, less the start.

    Without Linux' /proc it is the high-water mark of all memory.
    """

    def __enter__(self) -> Memory:
        self.start = self.peak = self.now()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop.set()
        self.thread.join()
        end = self.now()
        self.peak, self.kept = max(self.peak, end) - self.start, end - self.start

    def watch(self) -> None:
        """Runs in the thread."""
        while not self.stop.wait(0.001):
            self.peak = max(self.peak, self.now())

    @staticmethod
    def now() -> int:
        """Bytes."""
        try:
            status = Path("/proc/self/status").read_text()
            return 1024 * int(status.split("RssAnon:")[1].split()[0])
        except (OSError, IndexError):
            import resource

            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", help="weights in torchvision's names; default: random ones, written for it")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", help="file for all numbers")
    parser.add_argument("--step", choices=("write", "read"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        return load_step(args.step, args.model, args.file)
    found = load(args)
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
