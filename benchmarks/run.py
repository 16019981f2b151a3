"""Compare the speed and memory of tljax with PyTorch and Keras, for whole scripts and single steps: see README.md."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import devices
import results
import scripts_items
import steps
from bench import Bench
from driver import WorkerError
from machine import machine_name, memory_bytes, num_cores, processor_name

# In the order in which they run: some use results of others.
ITEMS: dict[str, Callable[[Bench], list[dict]]] = {
    "machine": steps.machine,
    "script": scripts_items.script,
    "as-written": scripts_items.as_written,
    "sweep": scripts_items.sweep,
    "step": steps.step,
    "last-stage": steps.last_stage,
    "head-augmented": steps.head_augmented,
    "memory": steps.memory,
    "devices": devices.devices,
}
ONCE = ("as-written", "memory", "devices")  # items without rounds
QUICK = {"rounds": 1, "seconds": 0.1, "epochs_as_written": 1}


def main() -> int:
    """Run the selected items; return 1 if a row has an error other than a missing peer."""
    args = parse()
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    device, cores = (gpu_name(), None) if args.device == "gpu" else (processor_name(), num_cores())
    name = (args.name or machine_name(device, cores)) + ("-quick" if args.quick else "")
    folder = Path(args.out)
    contents = read_results(folder / f"{name}.json")
    descriptions = {item: " ".join(function.__doc__.split()) for item, function in ITEMS.items()}
    start = time.monotonic()
    errors = 0
    with tempfile.TemporaryDirectory() as temporary, console.status("starting") as status:

        def on_status(text: str) -> None:
            status.update(f"{(time.monotonic() - start) / 60:.0f} min  {text}")

        bench = make_bench(args, Path(temporary), on_status, contents)
        contents["machine"] = machine_facts(args, device) | bench.versions()
        for item in args.only:
            item_start = time.monotonic()
            try:
                rows = ITEMS[item](bench)
            except (WorkerError, OSError) as error:
                console.print(f"[bold]{item}[/]: {error}", markup=True)
                errors += 1
                continue
            bench.results[item] = rows
            seconds = time.monotonic() - item_start
            settings = "once" if item in ONCE else f"rounds: {args.rounds}"
            when = time.strftime("%Y-%m-%d %H:%M")
            contents["items"][item] = {"when": when, "settings": settings, "seconds": seconds, "rows": rows}
            contents["items"] = {i: contents["items"][i] for i in ITEMS if i in contents["items"]}
            results.write(contents, folder, name, descriptions)  # after each item, so that a stopped run keeps results
            console.print(f"[bold]{item}[/], {seconds:.0f} s")
            for row in rows:
                note = row.get("error") or row.get("note") or ""
                text = f"  {row['case']}: {row['name']}: {results.format_median(row)}  {note}"
                console.print(text, markup=False)
                errors += "error" in row and not results.is_missing(row)
    console.print(f"{folder / name}.md, .json and .png; {errors} errors")
    return int(errors > 0)


def parse() -> argparse.Namespace:
    """Return the options, with those that --quick sets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commas = {"type": lambda text: text.split(",")}
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has torch and keras")
    parser.add_argument(
        "--only", default=None, help=f"items, of {', '.join(ITEMS)}; results of others are kept", **commas
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one turn of a step")
    parser.add_argument("--epochs-as-written", type=int, default=10, help="epochs of the scripts that take minutes")
    parser.add_argument("--torch-compile", action="store_true", help="also time torch.compile: minutes per network")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to test that everything runs")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--threads", type=int, default=num_cores())
    parser.add_argument("--name", help="name of the machine; default: its processor and cores, or its GPU")
    parser.add_argument("--out", default=str(Path(__file__).with_name("results")), help="folder of the results")
    args = parser.parse_args()
    # "devices" measures virtual CPU devices.
    args.only = args.only or [i for i in ITEMS if args.device == "cpu" or i != "devices"]
    if unknown := [item for item in args.only if item not in ITEMS]:
        parser.error(f"there is no item {unknown[0]}; choose from {', '.join(ITEMS)}")
    args.only = [item for item in ITEMS if item in args.only]
    return argparse.Namespace(**vars(args) | (QUICK if args.quick else {}))


def make_bench(args: argparse.Namespace, folder: Path, on_status: Callable[[str], None], contents: dict) -> Bench:
    """Return the settings that items use, with the results of earlier runs."""
    names = ("device", "quick", "rounds", "seconds", "threads", "peer_python", "torch_compile", "epochs_as_written")
    settings = {name: getattr(args, name) for name in names}
    earlier = {item: run["rows"] for item, run in contents["items"].items()}
    return Bench(**settings, folder=folder, on_status=on_status, results=earlier)


def read_results(path: Path) -> dict:
    """Return the results of earlier runs, so that items can be run one by one."""
    return json.loads(path.read_text()) if path.exists() else {"items": {}}


def machine_facts(args: argparse.Namespace, device: str) -> dict[str, str]:
    """Return facts about the machine and the run for the page."""
    memory = memory_bytes()
    return {
        "device": f"{device}, {args.threads} threads of {processor_name()}" if args.device == "gpu" else device,
        "cores": f"{num_cores()} (of {os.cpu_count()}), {args.threads} used",
        "memory": f"{memory / 2**30:.0f} GiB" if memory else "unknown",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
    }


def gpu_name() -> str:
    """Return the name of the first GPU."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "gpu"


if __name__ == "__main__":
    sys.exit(main())
