"""Items that time training steps in turns: the machine's peaks, whole networks, parts of them, and their memory."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

from bench import Bench, row
from driver import Failed, in_turns

TASK = {"classes": 10, "optimizer": "adam", "learns": "all", "augment": False, "cached": False}
KEPT = {"cached": True}
# (framework, type of the computation, what its task has besides).
ON_CPU = (
    ("tljax", "float32", {}),
    ("tljax", "bfloat16", {}),
    ("torch", "float32", {}),
    ("torch", "bfloat16", {}),
    ("keras-tensorflow", "float32", {}),
    ("keras-jax", "float32", {}),
)
ON_GPU = tuple((peer, "bfloat16", {}) for peer in ("tljax", "torch", "keras-tensorflow", "keras-jax"))


def entrants(bench: Bench, kept: bool = False) -> tuple:
    """Who takes part; with `kept`, ours once more on kept maps of the frozen stages."""
    found = ON_CPU if bench.device == "cpu" else ON_GPU
    return tuple((p, d, KEPT) for p, d, _ in found if p == "tljax" and kept) + found


def name_of(peer: str, dtype: str, more: dict) -> str:
    """The name of a row."""
    return f"{peer} {dtype}" + (", kept maps" if more else "")


def sizes(bench: Bench, small: bool = False) -> list[dict]:
    """Sides of pictures with the batches that fit them."""
    batches = ((64, 256), (224, 64)) if bench.device == "gpu" else ((64, 16), (224, 8))
    chosen = ((32, 2),) if bench.quick else batches[:1] if small else batches
    return [{"size": size, "batch": batch} for size, batch in chosen]


def machine(bench: Bench) -> list[dict]:
    """The best matrix product of two libraries in either type, and a triad's memory traffic."""
    rows, megabytes = [], 64 if bench.quick else 1024
    products = [(p, d, {}) for p in ("matmul", "matmul-torch") for d in ("float32", "bfloat16")]
    for peer, dtype, more in (*products, ("triad", "float32", {"megabytes": megabytes})):
        task = {"batch": 1, "trial": bench.seconds, "megabytes": megabytes}
        found = _turns(bench, "machine", task, ((peer, dtype, {}),))[0]
        if "error" not in found:
            values = [v * found["flops"] / 1e9 for v in found["values"]]
            found = row("machine", found["who"], values, "GB/s" if more else "GFLOP/s", dtype)
        rows.append(found)
    return rows


def step(bench: Bench) -> list[dict]:
    """A whole training step: loss, gradients of everything, Adam."""
    models = ("vgg16",) if bench.quick else ("resnet50", "vgg16")
    rows = []
    for model, size in itertools.product(models, sizes(bench)):
        rows += _turns(bench, case_of("step", model, size), {"model": model} | size, entrants(bench))
    return rows


def last_stage(bench: Bench) -> list[dict]:
    """The last stage and the head of ResNet-50 learn."""
    (size,) = sizes(bench, small=True)
    task = {"model": "resnet50", "learns": "last"} | size
    return _turns(bench, case_of("last stage", "resnet50", size), task, entrants(bench, kept=True))


def head_augmented(bench: Bench) -> list[dict]:
    """Only the head of VGG-16 learns, from pictures that are flipped and cropped anew each time."""
    (size,) = sizes(bench, small=True)
    size = size | {"batch": 32 if bench.device == "cpu" and not bench.quick else size["batch"]}
    task = {"model": "vgg16", "learns": "head", "augment": True} | size
    return _turns(bench, case_of("head, augmented", "vgg16", size), task, entrants(bench))


def memory(bench: Bench) -> list[dict]:
    """Optimizer and peak memory of a fresh process for each framework, after a few steps."""
    small, large = sizes(bench, small=True)[0], sizes(bench)[-1]
    cases = [("step", {"model": "resnet50"} | large, False)] if not bench.quick else []
    cases.append(("last stage", {"model": "resnet50", "learns": "last"} | small, True))
    cases.append(("head, augmented", {"model": "vgg16", "learns": "head", "augment": True} | small, False))
    rows = []
    for item, task, kept in cases:
        case = case_of(item, task["model"], task)
        fastest = {r["who"]: r.get("variant") for rows in bench.kept.values() for r in rows if r["case"] == case}
        for peer, dtype, more in entrants(bench, kept):
            who = name_of(peer, dtype, more)
            bench.say(f"memory, {case}: {who}")
            full = TASK | task | {"dtype": dtype, "trial": 0.0, "torch_compile": bench.torch_compile} | more
            full |= {"variant": fastest[who]} if fastest.get(who) else VARIANT.get(peer, {})
            rows.append(_measure(bench, f"memory, {case}", who, peer, full))
    return rows


# Where no other item chose: what is usually the fastest.
VARIANT = {"torch": {"variant": "channels_last"}, "keras-tensorflow": {"variant": "graph"}}


def _measure(bench: Bench, case: str, who: str, peer: str, task: dict) -> dict:
    """The peak above what the process had before the task, in MB; optimizer and learning bytes beside it."""
    try:
        with bench.worker(peer) as worker:
            before = worker.ask("tell")["peak_bytes"]
            worker.ask("prepare", **task)
            worker.ask("run", seconds=0.0)
            told = worker.ask("tell")
    except Failed as error:
        return row(case, who, [], "MB", task["dtype"], error=str(error))
    moments, learning = told["optimizer_bytes"], told["learning_bytes"]
    note = f"learns {learning / 1e6:.2f} MB, optimizer {moments / 1e6:.2f} MB = {moments / learning:.3g} ×"
    found = row(case, who, [(told["peak_bytes"] - before) / 1e6], "MB", task["dtype"], note=note, **told)
    if who.startswith("tljax") and moments != 2 * learning:
        found["error"] = f"Adam's moments have {moments} bytes, for {learning} bytes that learn"
    return found


def case_of(item: str, model: str, size: dict) -> str:
    """The name of a case."""
    return f"{item}: {model}, {size['size']}×{size['size']}, batch {size['batch']}"


def _turns(bench: Bench, case: str, task: dict, who: tuple) -> list[dict]:
    """A row of each entrant for one task, timed in turns."""
    rows, ready = [], {}
    with contextlib.ExitStack() as stack:
        for peer, dtype, more in who:
            name = name_of(peer, dtype, more)
            bench.say(f"{case}: {name} starts")
            try:
                worker = stack.enter_context(bench.worker(peer))
            except Failed as error:
                rows.append(row(case, name, [], "pictures/s", dtype, error=str(error)))
                continue
            given = {"trial": min(bench.seconds, 0.5), "torch_compile": bench.torch_compile, "dtype": dtype}
            ready[name] = (worker, TASK | given | task | more)
        for found in in_turns(ready, bench.rounds, bench.seconds, lambda what: bench.say(f"{case}: {what}")):
            name, values = found.pop("peer"), found.pop("rates")
            rows.append(row(case, name, values, "pictures/s", ready[name][1]["dtype"], **found))
    order = {name_of(*entrant): place for place, entrant in enumerate(who)}
    return sorted(rows, key=lambda r: order[r["who"]])


def peaks(rows: list[dict]) -> Iterator[tuple[str, float]]:
    """The best matrix product of either type among the machine's rows, in FLOP/s."""
    for dtype in ("float32", "bfloat16"):
        best = [max(r["values"]) for r in rows if r["unit"] == "GFLOP/s" and r["dtype"] == dtype and r["values"]]
        if best:
            yield dtype, 1e9 * max(best)
