"""Items that time training steps in turns: the machine's peaks, whole networks, parts of them, and their memory."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

from bench import Bench, row
from driver import WorkerError, time_in_turns

TASK = {"classes": 10, "optimizer": "adam", "trainable": "all", "augment": False, "cached": False}
CACHED = {"cached": True}
# The variants to measure where no other item has chosen the fastest.
DEFAULT_VARIANTS = {"torch": {"variant": "channels_last"}, "keras-tensorflow": {"variant": "graph"}}
# An entrant: framework, dtype of the computation, additional entries of its task.
Entrant = tuple[str, str, dict]
ON_CPU: tuple[Entrant, ...] = (
    ("tljax", "float32", {}),
    ("tljax", "bfloat16", {}),
    ("torch", "float32", {}),
    ("torch", "bfloat16", {}),
    ("keras-tensorflow", "float32", {}),
    ("keras-jax", "float32", {}),
)
ON_GPU: tuple[Entrant, ...] = tuple(
    (framework, "bfloat16", {}) for framework in ("tljax", "torch", "keras-tensorflow", "keras-jax")
)


def entrants(bench: Bench, cached: bool = False) -> tuple[Entrant, ...]:
    """Return the entrants; with `cached`, tljax takes part a second time with cached features of the frozen stages."""
    rows = ON_CPU if bench.device == "cpu" else ON_GPU
    return tuple((name, dtype, CACHED) for name, dtype, _ in rows if name == "tljax" and cached) + rows


def entrant_name(framework: str, dtype: str, options: dict) -> str:
    """Return the name of an entrant's row."""
    return f"{framework} {dtype}" + (", cached features" if options else "")


def sizes(bench: Bench, small: bool = False) -> list[dict]:
    """Return image sides with batch sizes; with `small`, only the first."""
    batches = ((64, 256), (224, 64)) if bench.device == "gpu" else ((64, 16), (224, 8))
    chosen = ((32, 2),) if bench.quick else batches[:1] if small else batches
    return [{"size": size, "batch": batch} for size, batch in chosen]


def machine(bench: Bench) -> list[dict]:
    """The fastest matrix product of two libraries in both dtypes, and the memory traffic of a triad."""
    rows = []
    megabytes = 64 if bench.quick else 1024
    products = [(framework, dtype) for framework in ("matmul", "matmul-torch") for dtype in ("float32", "bfloat16")]
    for framework, dtype in (*products, ("triad", "float32")):
        task = {"batch": 1, "trial": bench.seconds, "megabytes": megabytes}
        result = _time_entrants(bench, "machine", task, ((framework, dtype, {}),))[0]
        if "error" not in result:
            values = [v * result["flops"] / 1e9 for v in result["values"]]
            result = row("machine", result["name"], values, "GB/s" if framework == "triad" else "GFLOP/s", dtype)
        rows.append(result)
    return rows


def step(bench: Bench) -> list[dict]:
    """A whole training step: loss, gradients of all parameters, Adam."""
    models = ("vgg16",) if bench.quick else ("resnet50", "vgg16")
    rows = []
    for model, size in itertools.product(models, sizes(bench)):
        rows += _time_entrants(bench, case_name("step", model, size), {"model": model} | size, entrants(bench))
    return rows


def last_stage(bench: Bench) -> list[dict]:
    """A training step of ResNet-50's last stage and head."""
    (size,) = sizes(bench, small=True)
    task = {"model": "resnet50", "trainable": "last"} | size
    return _time_entrants(bench, case_name("last stage", "resnet50", size), task, entrants(bench, cached=True))


def head_augmented(bench: Bench) -> list[dict]:
    """A training step of VGG-16's head on images that are flipped and cropped at random in every step."""
    (size,) = sizes(bench, small=True)
    size = size | {"batch": 32 if bench.device == "cpu" and not bench.quick else size["batch"]}
    task = {"model": "vgg16", "trainable": "head", "augment": True} | size
    return _time_entrants(bench, case_name("head, augmented", "vgg16", size), task, entrants(bench))


def memory(bench: Bench) -> list[dict]:
    """Optimizer state and peak memory of a fresh process of each framework, after a few steps."""
    small = sizes(bench, small=True)[0]
    large = sizes(bench)[-1]
    cases = [("step", {"model": "resnet50"} | large, False)] if not bench.quick else []
    cases.append(("last stage", {"model": "resnet50", "trainable": "last"} | small, True))
    cases.append(("head, augmented", {"model": "vgg16", "trainable": "head", "augment": True} | small, False))
    rows = []
    for item, task, cached in cases:
        case = case_name(item, task["model"], task)
        earlier = [r for results in bench.results.values() for r in results if r["case"] == case]
        fastest = {r["name"]: r.get("variant") for r in earlier}
        for framework, dtype, options in entrants(bench, cached):
            name = entrant_name(framework, dtype, options)
            bench.on_status(f"memory, {case}: {name}")
            full_task = TASK | task | {"dtype": dtype, "trial": 0.0, "torch_compile": bench.torch_compile} | options
            full_task |= {"variant": fastest[name]} if fastest.get(name) else DEFAULT_VARIANTS.get(framework, {})
            rows.append(_measure_memory(bench, f"memory, {case}", name, framework, full_task))
    return rows


def _measure_memory(bench: Bench, case: str, name: str, framework: str, task: dict) -> dict:
    """Return the peak memory in MB above that before the task, with bytes of optimizer state and trainable params."""
    try:
        with bench.worker(framework) as worker:
            before = worker.call("memory")["peak_bytes"]
            worker.call("prepare", **task)
            worker.call("run", seconds=0.0)
            facts = worker.call("memory")
    except WorkerError as error:
        return row(case, name, [], "MB", task["dtype"], error=str(error))
    moments = facts["optimizer_bytes"]
    trainable = facts["trainable_bytes"]
    note = f"trainable {trainable / 1e6:.2f} MB, optimizer {moments / 1e6:.2f} MB = {moments / trainable:.3g} ×"
    result = row(case, name, [(facts["peak_bytes"] - before) / 1e6], "MB", task["dtype"], note=note, **facts)
    if name.startswith("tljax") and moments != 2 * trainable:
        result["error"] = f"Adam's moments have {moments} bytes for {trainable} bytes of trainable parameters"
    return result


def case_name(item: str, model: str, size: dict) -> str:
    """Return the name of a case."""
    return f"{item}: {model}, {size['size']}×{size['size']}, batch {size['batch']}"


def _time_entrants(bench: Bench, case: str, task: dict, participants: tuple[Entrant, ...]) -> list[dict]:
    """Return a row per entrant for one task, timed in turns."""
    rows, workers = [], {}
    with contextlib.ExitStack() as stack:
        for framework, dtype, options in participants:
            name = entrant_name(framework, dtype, options)
            bench.on_status(f"{case}: {name} starts")
            try:
                worker = stack.enter_context(bench.worker(framework))
            except WorkerError as error:
                rows.append(row(case, name, [], "images/s", dtype, error=str(error)))
                continue
            settings = {"trial": min(bench.seconds, 0.5), "torch_compile": bench.torch_compile, "dtype": dtype}
            workers[name] = (worker, TASK | settings | task | options)
        results = time_in_turns(
            workers, bench.rounds, bench.seconds, lambda status: bench.on_status(f"{case}: {status}")
        )
        for result in results:
            name = result.pop("peer")
            rates = result.pop("rates")
            rows.append(row(case, name, rates, "images/s", workers[name][1]["dtype"], **result))
    order = [entrant_name(*entrant) for entrant in participants]
    return sorted(rows, key=lambda r: order.index(r["name"]))


def matmul_peaks(rows: list[dict]) -> Iterator[tuple[str, float]]:
    """Yield (dtype, FLOP/s) of the fastest matrix product in each dtype among the machine's rows."""
    for dtype in ("float32", "bfloat16"):
        best = [max(r["values"]) for r in rows if r["unit"] == "GFLOP/s" and r["dtype"] == dtype and r["values"]]
        if best:
            yield dtype, 1e9 * max(best)
