"""Pictures per second of whole networks beside torchvision and Keras: see README.md."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import sys
import tempfile
from pathlib import Path

from driver import CPU, Failed, Process, environment, in_turns
from frameworks import KERAS, PEERS
from machine import cores


def compare(args, console) -> dict:
    """Times every model in every framework, in turns, and returns what goes into the JSON."""
    env = environment(args.threads, args.devices == "cpu")
    cells = list(itertools.product(args.models, args.modes, args.dtypes))
    workers, about, rows = {}, {}, []
    with contextlib.ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

        columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn())
        progress = stack.enter_context(Progress(*columns, console=console, transient=True))
        bar = progress.add_task("starting", total=None)
        for peer in ("matmul", "tljax", *args.peers):
            python = sys.executable if peer in ("matmul", "tljax") else args.peer_python
            worker = Process(peer, python, env, args.threads, logs / f"{peer}.log")
            stack.callback(worker.close)
            try:
                about[peer] = worker.ask("hello")
                workers[peer] = worker
            except Failed as error:
                about[peer] = {"versions": str(error)}
            if peer == "tljax" and about[peer].get("device") == "cpu":
                env |= CPU  # without a GPU for JAX the peers have none either
        progress.update(bar, total=len(cells) * len(workers) * (1 + args.rounds))
        for model, mode, dtype in cells:
            cell = {"model": model, "mode": mode, "dtype": dtype}
            task = {"model": model, "train": mode == "train", "dtype": dtype, "size": args.size, "batch": args.batch}
            task |= {"trial": min(args.seconds, 0.5), "torch_compile": args.torch_compile}
            tasks = {peer: task | ({"batch": 1} if peer == "matmul" else {}) for peer in workers}

            def say(what, cell=cell):
                progress.update(bar, description=f"{' '.join(cell.values())}: {what}", advance=1)

            entrants = {peer: (workers[peer], tasks[peer]) for peer in workers}
            rows += [cell | row for row in in_turns(entrants, args.rounds, args.seconds, say)]
    return {"settings": vars(args), "about": about, "rows": finish(rows)}


def finish(rows: list[dict]) -> list[dict]:
    """Adds best and median, the ratios of tljax to the peer, and the share of the best matmul of the whole run."""
    timed = [
        row | {"best": max(row["rates"]), "median": statistics.median(row["rates"])} for row in rows if row["rates"]
    ]
    peaks, ours = {}, {}
    for row in timed:
        if row["peer"] == "matmul":
            peaks[row["dtype"]] = max(peaks.get(row["dtype"], 0), row["best"] * row["flops"])
        if row["peer"] == "tljax":
            ours[cell_of(row)] = row
    for row in timed:
        if reference := ours.get(cell_of(row)):
            row |= {f"ratio_of_{which}": reference[which] / row[which] for which in ("best", "median")}
        if row["flops"] and row["dtype"] in peaks:
            row["share_of_peak"] = row["best"] * row["flops"] / peaks[row["dtype"]]
    return timed + [row for row in rows if not row["rates"]]


def cell_of(row: dict) -> tuple[str, str, str]:
    """What is compared with one another."""
    return row["model"], row["mode"], row["dtype"]


def show(found: dict, console) -> None:
    """The table, the peak, geometric means of the ratios, and the versions."""
    settings, rows, about = found["settings"], found["rows"], found["about"]
    title = "Pictures/s at {size}×{size} in batches of {batch}, {threads} threads, {rounds} rounds".format(**settings)
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, caption="GFLOP: per picture, as XLA counts. ratio: tljax/peer.")
    for i, heading in enumerate(("", "variant", "best", "median", "ratio", "GFLOP", "of peak")):
        table.add_column(heading, justify="left" if i < 2 else "right")
    order = {peer: place for place, peer in enumerate(about)}
    failures = {}
    for cell in itertools.product(settings["models"], settings["modes"], settings["dtypes"]):
        table.add_row(f"[bold]{' '.join(cell)}")
        of_cell = [row for row in rows if cell_of(row) == cell and row["peer"] != "matmul"]
        for row in sorted(of_cell, key=lambda row: order[row["peer"]]):
            if "error" in row:
                failures[row["error"]] = f"{row['peer']}, {' '.join(cell)}"
            if "best" not in row:
                table.add_row(f"  {row['peer']}", "failed")
                continue
            ratio = f"{row['ratio_of_best']:.2f}" if row["peer"] != "tljax" and "ratio_of_best" in row else ""
            counted = (f"{row['flops'] / 1e9:.2f}", f"{row.get('share_of_peak', 0):.0%}") if row["flops"] else ()
            table.add_row(
                f"  {row['peer']}", row["variant"], f"{row['best']:.2f}", f"{row['median']:.2f}", ratio, *counted
            )
        table.add_section()
    console.print(table)
    for error, where in failures.items():
        console.print(f"{where}: {error}", highlight=False, markup=False)
    for dtype in settings["dtypes"]:
        peaks = [row["best"] * row["flops"] for row in rows if (row["peer"], row["dtype"]) == ("matmul", dtype)]
        console.print(f"Peak: {max(peaks, default=0) / 1e9:.1f} GFLOP/s in a {dtype} matrix product")
    for peer, mode, dtype in itertools.product(settings["peers"], settings["modes"], settings["dtypes"]):
        key = (peer, mode, dtype)
        ratios = [r["ratio_of_best"] for r in rows if (r["peer"], *cell_of(r)[1:]) == key and "ratio_of_best" in r]
        if ratios:
            console.print(f"tljax/{peer}, {mode} {dtype}: {statistics.geometric_mean(ratios):.2f} (geometric mean)")
    for peer, facts in about.items():
        device = f" on {facts['device']}" if "device" in facts else ""
        console.print(f"{peer}: {facts['versions']}{device}", highlight=False)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commas = {"type": lambda text: text.split(",")}
    parser.add_argument("--models", default=["vgg16", "resnet50", "densenet121", "inception_v3"], **commas)
    parser.add_argument("--modes", default=["infer", "train"], **commas)
    parser.add_argument("--dtypes", default=["float32"], help="float32,bfloat16 (torch: autocast)", **commas)
    parser.add_argument("--peers", default=["torch", "keras-tensorflow", "keras-jax"], **commas)
    parser.add_argument("--size", type=int, default=128, help="side of the pictures; VGG has its dense layers at 224")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--devices", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--torch-compile", action="store_true", help="try torch.compile too: minutes per network")
    parser.add_argument("--peer-python", default=sys.executable, help="the interpreter that has torch and keras")
    parser.add_argument("--json", help="file for all numbers")
    args = parser.parse_args()
    if unknown := [peer for peer in args.peers if peer not in PEERS] + [m for m in args.models if m not in KERAS]:
        parser.error(f"unknown: {', '.join(unknown)}; peers: {', '.join(PEERS)}; models: {', '.join(KERAS)}")
    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=120)
    found = compare(args, console)
    show(found, console)
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
