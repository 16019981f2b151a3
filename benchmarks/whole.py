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

import numpy as np
import pictures
from bench import KERAS_OF, REPO, Bench, row
from driver import Failed
from scripts.fashion import VGG16

WEIGHTS = "vgg16_imagenet_notop"
PRECISIONS = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all scripts are given.

    Attributes:
      data: folder of the pictures.
      weights: the file.
      ours: flags of run.py.
      note: what is not real, if anything.
      per_class: pictures of each class.
      size: side of the pictures.
      epochs: of training.
    """

    data: Path
    weights: Path
    ours: tuple[str, ...]
    note: str
    per_class: int
    size: int
    epochs: int

    @classmethod
    def of(cls, bench: Bench) -> Setting:
        """Fashion-MNIST and ImageNet's weights where the environment has them, and random ones where it has not."""
        per_class, size, epochs = (20, 32, 1) if bench.quick else (200, 64, 10)
        notes, folders = [], {name: os.environ.get(name) for name in ("TLJAX_DATA_DIR", "TLJAX_WEIGHTS_DIR")}
        source = Path(folders["TLJAX_DATA_DIR"] or "") / "fashion-mnist"
        if not source.is_dir():
            source = None
            notes.append("random pictures")
        data = bench.folder / "pictures"
        pictures.write_subset(data, source, per_class)
        weights = Path(folders["TLJAX_WEIGHTS_DIR"] or "") / f"{WEIGHTS}.safetensors"
        ours = [
            f"--config.data.path={data}",
            f"--config.data.labels_per_class={per_class}",
            f"--config.data.image_size={size}",
            f"--config.train.epochs={epochs}",
        ]
        if not weights.is_file():
            weights = bench.folder / "random.safetensors"
            write_weights(weights)
            notes.append("random weights")
            ours += [f"--config.model.weights={weights}", "--config.model.preprocess=caffe"]
        note = f"{' and '.join(notes)}: accuracies mean nothing" if notes else ""
        return cls(data, weights, tuple(ours), note, per_class, size, epochs)

    def options(self, epochs: int | None = None) -> list[str]:
        """Those of the peers' scripts."""
        given = {"data": self.data, "weights": self.weights, "per-class": self.per_class, "size": self.size}
        return [f"--{k}={v}" for k, v in (given | {"epochs": epochs or self.epochs}).items()]


def write_weights(path: Path) -> None:
    """Random weights of VGG-16's convolutions in torchvision's names, of a scale that keeps activations alive."""
    from safetensors.numpy import save_file

    rng, tensors, before, place = np.random.default_rng(0), {}, 3, 0
    for channels in VGG16:
        if channels != "M":
            kernel = rng.standard_normal((channels, before, 3, 3), np.float32) * (2 / (9 * before)) ** 0.5
            tensors[f"features.{place}.weight"] = kernel.astype(np.float32)
            tensors[f"features.{place}.bias"] = np.zeros(channels, np.float32)
            before = channels
        place += 1 if channels == "M" else 2
    save_file(tensors, path)


def script(bench: Bench) -> list[dict]:
    """The scripts of the experts and ours in turns; ours with nothing kept, and again with what the run before kept."""
    setting = Setting.of(bench)
    entrants: dict[str, Callable[[], list[dict]]] = {}
    for precision in PRECISIONS:
        entrants[f"tljax {precision}"] = functools.partial(_ours, bench, setting, precision)
    for name in ("keras-tensorflow", "keras-jax"):
        env = {"KERAS_BACKEND": KERAS_OF[name]}
        entrants[f"{name} expert"] = functools.partial(_peer, bench, f"{name} expert", "keras_expert.py", setting, env)
    for precision in PRECISIONS:
        name, option = f"torch expert {precision}", f"--precision={precision}"
        entrants[name] = functools.partial(_peer, bench, name, "torch_expert.py", setting, {}, option, dtype=precision)
    rows, turns = {}, list(entrants)
    for turn in range(bench.rounds):
        for name in turns:
            bench.say(f"script, round {turn + 1} of {bench.rounds}: {name}")
            for found in entrants[name]():
                first = rows.setdefault(found["who"], found)
                if "error" in found:
                    first["error"] = found["error"]
                elif first is not found:
                    rows[found["who"]] = row(**_merged(first, found))
        turns = [name for name in turns[1:] + turns[:1] if "error" not in rows[name]]
    return list(rows.values())


def _merged(first: dict, found: dict) -> dict:
    """A row with the values of another round."""
    values = first["values"] + found["values"]
    lists = {k: (first[k] or []) + found[k] for k in ("head_seconds",) if k in found}
    return {k: v for k, v in first.items() if k != "median"} | {"values": values} | lists


def as_written(bench: Bench) -> list[dict]:
    """Keras' `fit` on the whole frozen network, as tutorials have it, once for each backend."""
    setting, rows = Setting.of(bench), []
    epochs = min(setting.epochs, bench.epochs_as_written)
    for name, backend in KERAS_OF.items():
        who = f"{name} as written"
        bench.say(f"script: {who}, {epochs} epochs")
        (found,) = _peer(bench, who, "keras_as_written.py", setting, {"KERAS_BACKEND": backend}, epochs=epochs)
        if epochs < setting.epochs and found["values"]:
            times = setting.epochs / epochs
            found["note"] = f"computed: start-up and {times:g} × {epochs} epochs of fit"
            found["median"] += (times - 1) * found["fit_seconds"]
            del found["accuracy"]
        rows.append(found)
    return rows


def _peer(
    bench: Bench,
    who: str,
    name: str,
    setting: Setting,
    env: dict,
    *options: str,
    epochs: int | None = None,
    dtype: str = "float32",
) -> list[dict]:
    """One run of a peer's script."""
    try:
        seconds, printed = bench.script(name, *setting.options(epochs), *options, **env)
    except (Failed, ValueError) as error:
        return [row("script", who, [], "s", dtype, error=str(error))]
    head = {"head_seconds": [printed["head_seconds"]]} if "head_seconds" in printed else {}
    head |= {name: printed[name] for name in ("fit_seconds",) if name in printed}
    note = {"note": setting.note} if setting.note else {}
    return [row("script", who, [seconds], "s", dtype, accuracy=printed["accuracy"], **head, **note)]


def _ours(bench: Bench, setting: Setting, precision: str) -> list[dict]:
    """Two runs of ours: the first keeps compiled programs alone of what earlier ones kept, the second has all."""
    cache, rows, who = bench.folder / f"cache-{precision}", [], f"tljax {precision}"
    if not cache.exists():
        rows.append(_run(bench, setting, precision, cache, f"{who}, nothing compiled before", accuracy=True))
    for kept in cache.glob("*") if cache.exists() else ():
        if kept.is_dir() and kept.name != "xla":
            shutil.rmtree(kept)
    rows.append(_run(bench, setting, precision, cache, who, accuracy=True))
    rows.append(_run(bench, setting, precision, cache, f"{who}, second run", accuracy=True))
    return rows


def _run(
    bench: Bench,
    setting: Setting,
    variant: str,
    cache: Path,
    who: str,
    case: str = "script",
    accuracy: bool = False,
) -> dict:
    """One run of run.py in a fresh work directory."""
    workdir, dtype = bench.folder / "workdir", variant.partition("-")[0]
    shutil.rmtree(workdir, ignore_errors=True)
    command = [sys.executable, str(REPO / "run.py"), f"--config=benchmarks/tutorial.py:{variant}"]
    env = {"TLJAX_CACHE": str(cache)}
    try:
        seconds, _ = bench.whole([*command, f"--workdir={workdir}", *setting.ours], **env)
    except Failed as error:
        return row(case, who, [], "s", dtype, error=str(error))
    note = {"note": setting.note} if setting.note else {}
    if accuracy:
        last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
        note["accuracy"] = last["valid"]["accuracy"]
    return row(case, who, [seconds], "s", dtype, **note)


def sweep(bench: Bench) -> list[dict]:
    """Eight learning rates by four weight decays; the peers' rows are computed from what the scripts took once."""
    setting, grid = Setting.of(bench), "2x2" if bench.quick else "8x4"
    cells = int(np.prod([int(n) for n in grid.split("x")]))
    case, rows = f"sweep: {cells} cells", []
    for precision in PRECISIONS:
        who = f"tljax {precision}"
        bench.say(f"{case}: {who}")
        cache = bench.folder / f"cache-sweep-{precision}"
        rows.append(_run(bench, setting, f"{precision}-{grid}", cache, who, case))
    for measured in (*bench.kept.get("as-written", ()), *bench.kept.get("script", ())):
        who, dtype = measured["who"], measured["dtype"]
        if who.startswith("tljax") or "median" not in measured:
            continue
        once = measured["median"]
        rows.append(row(case, who, [cells * once], "s", dtype, note=f"computed: {cells} × {once:.1f} s"))
        if "head_seconds" in measured:
            head = float(np.median(measured["head_seconds"]))
            note = f"computed: {once:.1f} s + {cells - 1} heads of {head:.2f} s"
            name = f"{who}, one process for all cells"
            rows.append(row(case, name, [once + (cells - 1) * head], "s", dtype, note=note))
    return rows
