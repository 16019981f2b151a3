"""How fast tljax is beside torch and Keras, whole scripts and single steps: see README.md."""

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
import steps
import whole
from bench import Bench
from driver import Failed
from machine import cores, memory_bytes, name_of, processor

# In the order in which they run: some use what others found.
ITEMS: dict[str, Callable[[Bench], list[dict]]] = {
    "machine": steps.machine,
    "script": whole.script,
    "as-written": whole.as_written,
    "sweep": whole.sweep,
    "step": steps.step,
    "last-stage": steps.last_stage,
    "head-augmented": steps.head_augmented,
    "memory": steps.memory,
    "devices": devices.devices,
}
QUICK = {"rounds": 1, "seconds": 0.1, "epochs_as_written": 1}


def main() -> int:
    """The command line; 1 where a row has an error that is not a missing peer."""
    args = parse()
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    part, count = (gpu(), None) if args.device == "gpu" else (processor(), cores())
    name = (args.name or name_of(part, count)) + ("-quick" if args.quick else "")
    folder = Path(args.out)
    found = read(folder / f"{name}.json")
    start, wrong = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as temporary, console.status("starting") as status:

        def say(what: str) -> None:
            status.update(f"{(time.monotonic() - start) / 60:.0f} min  {what}")

        kept = {item: run["rows"] for item, run in found["items"].items()}
        settings = {k: getattr(args, k) for k in ("device", "quick", "rounds", "seconds", "threads")}
        settings |= {k: getattr(args, k) for k in ("peer_python", "torch_compile", "epochs_as_written")}
        bench = Bench(**settings, folder=Path(temporary), say=say, kept=kept)
        found["machine"] = facts(args, part) | bench.versions()
        for item in args.only:
            begun = time.monotonic()
            try:
                rows = ITEMS[item](bench)
            except (Failed, OSError) as error:
                console.print(f"[bold]{item}[/]: {error}", markup=True)
                wrong += 1
                continue
            kept[item] = rows
            seconds = time.monotonic() - begun
            rounds = f"rounds: {args.rounds}" if item not in ("as-written", "memory", "devices") else "once"
            when = time.strftime("%Y-%m-%d %H:%M")
            found["items"][item] = {"when": when, "settings": rounds, "seconds": seconds, "rows": rows}
            found["items"] = {i: found["items"][i] for i in ITEMS if i in found["items"]}
            about = {i: " ".join(ITEMS[i].__doc__.split()) for i in ITEMS}
            results.write(found, folder, name, about)  # after each item: a run that is stopped keeps what it has
            console.print(f"[bold]{item}[/], {seconds:.0f} s")
            for row in rows:
                note = row.get("error") or row.get("note") or ""
                console.print(f"  {row['case']}: {row['who']}: {results.measured(row)}  {note}", markup=False)
                wrong += "error" in row and not results.is_missing(row)
    console.print(f"{folder / name}.md, .json and .png; {wrong} errors")
    return int(wrong > 0)


def parse() -> argparse.Namespace:
    """The options, with those of --quick filled in."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commas = {"type": lambda text: text.split(",")}
    parser.add_argument("--peer-python", default=sys.executable, help="the interpreter that has torch and keras")
    parser.add_argument("--only", default=None, help=f"items, of {', '.join(ITEMS)}; others' results stay", **commas)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one turn of a step")
    parser.add_argument("--epochs-as-written", type=int, default=10, help="of the scripts that take minutes")
    parser.add_argument("--torch-compile", action="store_true", help="try torch.compile too: minutes per network")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see whether everything runs")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--name", help="of the machine; default: its processor and cores, or its GPU")
    parser.add_argument("--out", default=str(Path(__file__).with_name("results")), help="folder of the results")
    args = parser.parse_args()
    # A GPU's results are those of the items that it makes faster.
    args.only = args.only or [i for i in ITEMS if args.device == "cpu" or i != "devices"]
    if unknown := [item for item in args.only if item not in ITEMS]:
        parser.error(f"there is no item {unknown[0]}: take {', '.join(ITEMS)}")
    args.only = [item for item in ITEMS if item in args.only]
    return argparse.Namespace(**vars(args) | (QUICK if args.quick else {}))


def read(path: Path) -> dict:
    """What an earlier run left, so that items can be run one by one."""
    return json.loads(path.read_text()) if path.exists() else {"items": {}}


def facts(args: argparse.Namespace, part: str) -> dict[str, str]:
    """The machine and the run, for the page."""
    memory = memory_bytes()
    return {
        "device": f"{part}, {args.threads} threads of {processor()}" if args.device == "gpu" else part,
        "cores": f"{cores()} (of {os.cpu_count()}), {args.threads} used",
        "memory": f"{memory / 2**30:.0f} GiB" if memory else "unknown",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
    }


def gpu() -> str:
    """Name of the first GPU."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "gpu"


if __name__ == "__main__":
    sys.exit(main())
