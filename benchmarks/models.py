"""Compare images per second of whole networks with torchvision and Keras: see README.md."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import sys
import tempfile
from pathlib import Path

from driver import CPU, WorkerError, WorkerProcess, environment, time_in_turns
from frameworks import FRAMEWORKS, KERAS
from machine import num_cores

HEADINGS = ("", "variant", "best", "median", "ratio", "GFLOP", "of peak")


def compare(args, console) -> dict:
    """Time every model in every framework, in turns, and return the contents of the JSON file."""
    cases = list(itertools.product(args.models, args.modes, args.dtypes))
    rows = []
    with contextlib.ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

        columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn())
        progress = stack.enter_context(Progress(*columns, console=console, transient=True))
        bar = progress.add_task("starting", total=None)
        workers, about = start_workers(args, logs, stack)
        progress.update(bar, total=len(cases) * len(workers) * (1 + args.rounds))
        for model, mode, dtype in cases:
            case = {"model": model, "mode": mode, "dtype": dtype}
            task = {"model": model, "train": mode == "train", "dtype": dtype, "size": args.size, "batch": args.batch}
            task |= {"trial": min(args.seconds, 0.5), "torch_compile": args.torch_compile}
            tasks = {name: task | ({"batch": 1} if name == "matmul" else {}) for name in workers}

            def on_status(text, case=case):
                progress.update(bar, description=f"{' '.join(case.values())}: {text}", advance=1)

            entrants = {name: (workers[name], tasks[name]) for name in workers}
            rows += [case | row for row in time_in_turns(entrants, args.rounds, args.seconds, on_status)]
    return {"settings": vars(args), "about": about, "rows": add_ratios(rows)}


def start_workers(args, logs: Path, stack: contextlib.ExitStack) -> tuple[dict[str, WorkerProcess], dict[str, dict]]:
    """Start a worker per framework; return the workers, and versions and device (or the error) of all frameworks."""
    env = environment(args.threads, args.devices == "cpu")
    workers, about = {}, {}
    for name in ("matmul", "tljax", *args.peers):
        python = sys.executable if name in ("matmul", "tljax") else args.peer_python
        worker = WorkerProcess(name, python, env, args.threads, logs / f"{name}.log")
        stack.callback(worker.close)
        try:
            about[name] = worker.call("describe")
            workers[name] = worker
        except WorkerError as error:
            about[name] = {"versions": str(error)}
        if name == "tljax" and about[name].get("device") == "cpu":
            env |= CPU  # if JAX has no GPU, the peers do not use one either
    return workers, about


def add_ratios(rows: list[dict]) -> list[dict]:
    """Add best and median, the ratios of tljax to the peer, and the share of the best matrix product of the run."""
    timed = [
        row | {"best": max(row["rates"]), "median": statistics.median(row["rates"])} for row in rows if row["rates"]
    ]
    peaks, tljax_rows = {}, {}
    for row in timed:
        if row["peer"] == "matmul":
            peaks[row["dtype"]] = max(peaks.get(row["dtype"], 0), row["best"] * row["flops"])
        if row["peer"] == "tljax":
            tljax_rows[case_of(row)] = row
    for row in timed:
        if tljax_row := tljax_rows.get(case_of(row)):
            row |= {f"ratio_of_{key}": tljax_row[key] / row[key] for key in ("best", "median")}
        if row["flops"] and row["dtype"] in peaks:
            row["share_of_peak"] = row["best"] * row["flops"] / peaks[row["dtype"]]
    return timed + [row for row in rows if not row["rates"]]


def case_of(row: dict) -> tuple[str, str, str]:
    """Return model, mode and dtype; rows with the same case are compared."""
    return row["model"], row["mode"], row["dtype"]


def show(results: dict, console) -> None:
    """Print the table, the peak, geometric means of the ratios, and the versions."""
    settings = results["settings"]
    rows = results["rows"]
    console.print(make_table(results))
    failures = {row["error"]: f"{row['peer']}, {' '.join(case_of(row))}" for row in rows if "error" in row}
    for error, case in failures.items():
        console.print(f"{case}: {error}", highlight=False, markup=False)
    for dtype in settings["dtypes"]:
        peaks = [row["best"] * row["flops"] for row in rows if (row["peer"], row["dtype"]) == ("matmul", dtype)]
        console.print(f"Peak: {max(peaks, default=0) / 1e9:.1f} GFLOP/s in a {dtype} matrix product")
    for peer, mode, dtype in itertools.product(settings["peers"], settings["modes"], settings["dtypes"]):
        key = (peer, mode, dtype)
        ratios = [r["ratio_of_best"] for r in rows if (r["peer"], *case_of(r)[1:]) == key and "ratio_of_best" in r]
        if ratios:
            console.print(f"tljax/{peer}, {mode} {dtype}: {statistics.geometric_mean(ratios):.2f} (geometric mean)")
    for name, facts in results["about"].items():
        device = f" on {facts['device']}" if "device" in facts else ""
        console.print(f"{name}: {facts['versions']}{device}", highlight=False)


def make_table(results: dict):
    """Return a rich table with a section per case."""
    from rich import box
    from rich.table import Table

    settings = results["settings"]
    title = "Images/s at {size}×{size} with batch size {batch}, {threads} threads, {rounds} rounds".format(**settings)
    table = Table(title=title, box=box.SIMPLE_HEAD, caption="GFLOP: per image, counted by XLA. ratio: tljax/peer.")
    for i, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if i < 2 else "right")
    order = list(results["about"])
    for case in itertools.product(settings["models"], settings["modes"], settings["dtypes"]):
        table.add_row(f"[bold]{' '.join(case)}")
        case_rows = [row for row in results["rows"] if case_of(row) == case and row["peer"] != "matmul"]
        for row in sorted(case_rows, key=lambda row: order.index(row["peer"])):
            table.add_row(f"  {row['peer']}", *format_cells(row))
        table.add_section()
    return table


def format_cells(row: dict) -> tuple[str, ...]:
    """Return the cells of a row after its name."""
    if "best" not in row:
        return ("failed",)
    ratio = f"{row['ratio_of_best']:.2f}" if row["peer"] != "tljax" and "ratio_of_best" in row else ""
    cost = (f"{row['flops'] / 1e9:.2f}", f"{row.get('share_of_peak', 0):.0%}") if row["flops"] else ()
    return (row["variant"], f"{row['best']:.2f}", f"{row['median']:.2f}", ratio, *cost)


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commas = {"type": lambda text: text.split(",")}
    parser.add_argument("--models", default=["vgg16", "resnet50", "densenet121", "inception_v3"], **commas)
    parser.add_argument("--modes", default=["infer", "train"], **commas)
    parser.add_argument("--dtypes", default=["float32"], help="float32,bfloat16 (torch: autocast)", **commas)
    parser.add_argument("--peers", default=["torch", "keras-tensorflow", "keras-jax"], **commas)
    parser.add_argument("--size", type=int, default=128, help="side of the images; VGG has its dense layers at 224")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=num_cores())
    parser.add_argument("--devices", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--torch-compile", action="store_true", help="also time torch.compile: minutes per network")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has torch and keras")
    parser.add_argument("--json", help="file for all results")
    args = parser.parse_args()
    if unknown := [peer for peer in args.peers if peer not in FRAMEWORKS] + [m for m in args.models if m not in KERAS]:
        parser.error(f"unknown: {', '.join(unknown)}; peers: {', '.join(FRAMEWORKS)}; models: {', '.join(KERAS)}")
    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=120)
    results = compare(args, console)
    show(results, console)
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
