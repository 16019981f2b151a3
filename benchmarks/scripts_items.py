"""Items that time whole processes: the tutorial's script, once and as a sweep."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import images as image_files
import numpy as np
from bench import KERAS_BACKENDS, REPO, Bench, row
from driver import WorkerError
from scripts.fashion import VGG16

WEIGHTS = "vgg16_imagenet_notop"
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class ScriptSettings:
    """Settings that all scripts share.

    Attributes:
      data: folder of the images.
      weights: file of VGG-16's weights.
      flags: flags of run.py for the same settings.
      note: which parts are random instead of real, or an empty string.
      per_class: number of images per class.
      size: side of the images, in pixels.
      epochs: number of training epochs.
    """

    data: Path
    weights: Path
    flags: tuple[str, ...]
    note: str
    per_class: int
    size: int
    epochs: int

    @classmethod
    def from_environment(cls, bench: Bench) -> ScriptSettings:
        """Use Fashion-MNIST and ImageNet's weights if the environment variables name them, else random ones."""
        per_class, size, epochs = (20, 32, 1) if bench.quick else (200, 64, 10)
        notes = []
        source = Path(os.environ.get("TLJAX_DATA_DIR", "")) / "fashion-mnist"
        if not source.is_dir():
            source = None
            notes.append("random images")
        data = bench.folder / "images"
        image_files.write_subset(data, source, per_class)
        weights = Path(os.environ.get("TLJAX_WEIGHTS_DIR", "")) / f"{WEIGHTS}.safetensors"
        flags = [
            f"--config.data.path={data}",
            f"--config.data.labels_per_class={per_class}",
            f"--config.data.image_size={size}",
            f"--config.train.epochs={epochs}",
        ]
        if not weights.is_file():
            weights = bench.folder / "random.safetensors"
            write_random_weights(weights)
            notes.append("random weights")
            flags += [f"--config.model.weights={weights}", "--config.model.preprocess=caffe"]
        note = f"{' and '.join(notes)}: accuracies mean nothing" if notes else ""
        return cls(data, weights, tuple(flags), note, per_class, size, epochs)

    def script_options(self, epochs: int | None = None) -> list[str]:
        """Return the options of the peers' scripts; `epochs` overrides the number of epochs."""
        options = {"data": self.data, "weights": self.weights, "per-class": self.per_class, "size": self.size}
        return [f"--{k}={v}" for k, v in (options | {"epochs": epochs or self.epochs}).items()]


def write_random_weights(path: Path) -> None:
    """Write random weights of VGG-16's convolutions with torchvision's names, scaled to preserve activations."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    tensors = {}
    inputs = 3
    index = 0
    for channels in VGG16:
        if channels != "M":
            kernel = rng.standard_normal((channels, inputs, 3, 3), np.float32) * (2 / (9 * inputs)) ** 0.5
            tensors[f"features.{index}.weight"] = kernel.astype(np.float32)
            tensors[f"features.{index}.bias"] = np.zeros(channels, np.float32)
            inputs = channels
        index += 1 if channels == "M" else 2
    save_file(tensors, path)


@dataclasses.dataclass(frozen=True)
class PeerScript:
    """A script of a peer.

    Attributes:
      name: name of its row.
      file: file in scripts/.
      env: additional environment variables.
      options: additional command-line options.
      dtype: type of the computation.
    """

    name: str
    file: str
    env: dict[str, str] = dataclasses.field(default_factory=dict)
    options: tuple[str, ...] = ()
    dtype: str = "float32"


def script(bench: Bench) -> list[dict]:
    """The experts' scripts and tljax in turns; tljax without cached features, and again with those of its first run."""
    settings = ScriptSettings.from_environment(bench)
    entrants: dict[str, Callable[[], list[dict]]] = {}
    for dtype in DTYPES:
        entrants[f"tljax {dtype}"] = functools.partial(_run_tljax_twice, bench, settings, dtype)
    peers = [
        PeerScript(f"{name} expert", "keras_expert.py", {"KERAS_BACKEND": KERAS_BACKENDS[name]})
        for name in ("keras-tensorflow", "keras-jax")
    ]
    peers += [
        PeerScript(f"torch expert {dtype}", "torch_expert.py", {}, (f"--precision={dtype}",), dtype) for dtype in DTYPES
    ]
    for peer in peers:
        entrants[peer.name] = functools.partial(_run_peer, bench, settings, peer)
    rows = {}
    order = list(entrants)
    for turn in range(bench.rounds):
        for name in order:
            bench.on_status(f"script, round {turn + 1} of {bench.rounds}: {name}")
            for result in entrants[name]():
                first = rows.setdefault(result["name"], result)
                if "error" in result:
                    first["error"] = result["error"]
                elif first is not result:
                    rows[result["name"]] = row(**_merge_rounds(first, result))
        order = [name for name in order[1:] + order[:1] if "error" not in rows[name]]
    return list(rows.values())


def _merge_rounds(first: dict, result: dict) -> dict:
    """Return the fields of a row with the values of another round added."""
    values = first["values"] + result["values"]
    lists = {k: (first[k] or []) + result[k] for k in ("head_seconds",) if k in result}
    return {k: v for k, v in first.items() if k != "median"} | {"values": values} | lists


def as_written(bench: Bench) -> list[dict]:
    """Keras' `fit` on the whole frozen network, as in tutorials, once per backend."""
    settings = ScriptSettings.from_environment(bench)
    rows = []
    epochs = min(settings.epochs, bench.epochs_as_written)
    for keras, backend in KERAS_BACKENDS.items():
        name = f"{keras} as written"
        bench.on_status(f"script: {name}, {epochs} epochs")
        peer = PeerScript(name, "keras_as_written.py", {"KERAS_BACKEND": backend})
        (result,) = _run_peer(bench, settings, peer, epochs)
        if epochs < settings.epochs and result["values"]:
            factor = settings.epochs / epochs
            result["note"] = f"computed: start-up and {factor:g} × {epochs} epochs of fit"
            result["median"] += (factor - 1) * result["fit_seconds"]
            del result["accuracy"]
        rows.append(result)
    return rows


def _run_peer(bench: Bench, settings: ScriptSettings, peer: PeerScript, epochs: int | None = None) -> list[dict]:
    """Run a peer's script once and return its row."""
    try:
        seconds, output = bench.run_script(peer.file, *settings.script_options(epochs), *peer.options, **peer.env)
    except (WorkerError, ValueError) as error:
        return [row("script", peer.name, [], "s", peer.dtype, error=str(error))]
    fields = {"accuracy": output["accuracy"]}
    if "head_seconds" in output:
        fields["head_seconds"] = [output["head_seconds"]]
    if "fit_seconds" in output:
        fields["fit_seconds"] = output["fit_seconds"]
    if settings.note:
        fields["note"] = settings.note
    return [row("script", peer.name, [seconds], "s", peer.dtype, **fields)]


def _run_tljax_twice(bench: Bench, settings: ScriptSettings, dtype: str) -> list[dict]:
    """Run tljax twice: first with compiled programs but no features in the cache, then with the whole cache."""
    cache = bench.folder / f"cache-{dtype}"
    name = f"tljax {dtype}"
    rows = []
    if not cache.exists():
        rows.append(_run_tljax(bench, settings, dtype, cache, f"{name}, nothing compiled before"))
    for folder in cache.glob("*") if cache.exists() else ():
        if folder.is_dir() and folder.name != "xla":
            shutil.rmtree(folder)
    rows.append(_run_tljax(bench, settings, dtype, cache, name))
    rows.append(_run_tljax(bench, settings, dtype, cache, f"{name}, second run"))
    return rows


def _run_tljax(
    bench: Bench, settings: ScriptSettings, variant: str, cache: Path, name: str, case: str = "script"
) -> dict:
    """Run a variant of tutorial.py in a fresh work directory; the row of the script also has its accuracy."""
    workdir = bench.folder / "workdir"
    dtype = variant.partition("-")[0]
    shutil.rmtree(workdir, ignore_errors=True)
    command = [sys.executable, str(REPO / "run.py"), f"--config=benchmarks/tutorial.py:{variant}"]
    env = {"TLJAX_CACHE": str(cache)}
    try:
        seconds, _ = bench.run_process([*command, f"--workdir={workdir}", *settings.flags], **env)
    except WorkerError as error:
        return row(case, name, [], "s", dtype, error=str(error))
    fields = {"note": settings.note} if settings.note else {}
    if case == "script":
        last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
        fields["accuracy"] = last["valid"]["accuracy"]
    return row(case, name, [seconds], "s", dtype, **fields)


def sweep(bench: Bench) -> list[dict]:
    """Eight learning rates by four weight decays; the peers' rows are computed from the times of their scripts."""
    settings = ScriptSettings.from_environment(bench)
    grid = "2x2" if bench.quick else "8x4"
    trials = int(np.prod([int(n) for n in grid.split("x")]))
    case = f"sweep: {trials} trials"
    rows = []
    for dtype in DTYPES:
        name = f"tljax {dtype}"
        bench.on_status(f"{case}: {name}")
        cache = bench.folder / f"cache-sweep-{dtype}"
        rows.append(_run_tljax(bench, settings, f"{dtype}-{grid}", cache, name, case))
    for result in (*bench.results.get("as-written", ()), *bench.results.get("script", ())):
        name = result["name"]
        dtype = result["dtype"]
        if name.startswith("tljax") or "median" not in result:
            continue
        once = result["median"]
        rows.append(row(case, name, [trials * once], "s", dtype, note=f"computed: {trials} × {once:.1f} s"))
        if "head_seconds" in result:
            head = float(np.median(result["head_seconds"]))
            note = f"computed: {once:.1f} s + {trials - 1} heads of {head:.2f} s"
            one_process = f"{name}, one process for all trials"
            rows.append(row(case, one_process, [once + (trials - 1) * head], "s", dtype, note=note))
    return rows
