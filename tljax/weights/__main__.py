"""`python -m tljax.weights`: lists the known weights, inspects files, and converts them into other libraries' names."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from tljax import weights
from tljax.errors import TljaxError, UserError, did_you_mean
from tljax.weights.catalog import CATALOG, PretrainedConfig
from tljax.weights.convert import convert
from tljax.weights.detect import detect_backbone


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tljax.weights", description=__doc__.partition(": ")[2])
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    about = "the known weights (the default)"
    command = commands.add_parser("list", help=about, description=about)
    command.add_argument("pattern", nargs="?", default="*", help="shell pattern of names, e.g. '*resnet50*'")
    about = "what a file holds: network, layout, tensors, and what would not fit"
    command = commands.add_parser("inspect", help=about, description=about)
    command.add_argument("source", help="file, hf:OWNER/REPO, workdir:PATH, or a name from the list")
    command.add_argument("--all", action="store_true", help="show every tensor, not the first and last few")
    about = "write weights as .safetensors in another library's names (torchvision's, where it has the network)"
    command = commands.add_parser("convert", aliases=["export"], help=about, description=about)
    command.add_argument("source", help="file, hf:OWNER/REPO, workdir:PATH (a finished run), or a name from the list")
    command.add_argument("out", type=Path, help="the .safetensors file to write")
    command.add_argument("--layout", help="whose names: torchvision, timm, keras, ...; default: the family's first")
    given = parser.parse_args(arguments)
    # Names from a file are shown as they are, brackets and colons too.
    plain = {"markup": False, "highlight": False, "emoji": False}
    console = Console(width=None if sys.stdout.isatty() else 200, **plain)
    try:
        if given.command == "inspect":
            _inspect(given.source, given.all, console)
        elif given.command in ("convert", "export"):
            written = convert(given.source, given.out, given.layout)
            console.print(f"{given.out}: {written.describe()}")
        else:
            _list(getattr(given, "pattern", "*"), console)
    except TljaxError as error:
        print(f"{error.label}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _list(pattern: str, console: Console) -> None:
    entries = weights.list(pattern)
    if not entries:
        raise UserError(f'No known weights match "{pattern}"{did_you_mean(pattern.strip("*"), CATALOG)}')
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    # A name that is cut cannot be used: the other columns give way first.
    table.add_column("name", min_width=max(len(entry.name) for entry in entries), overflow="fold")
    for column in (
        "backbone",
        "classes",
        "size",
        "crop",
        "interpolation",
        "preprocessing",
        "digest",
        "licence",
    ):
        table.add_column(column, justify="right" if column in ("classes", "size", "crop") else "left")
    for entry in entries:
        table.add_row(*_row(entry))
    console.print(table)
    where = "Where each lies: tljax.weights.CATALOGUE[name].source."
    console.print(f"{len(entries)} of {len(CATALOG)}. {where}")


def _row(entry: PretrainedConfig) -> list[str]:
    values = entry.normalisation
    if not isinstance(values, str):
        values = " / ".join(",".join(f"{x:.3g}" for x in numbers) for numbers in values)
    digest = (
        "the Hub's" if entry.digest is None else f"{'MD5' if entry.digest_is_md5 else 'SHA-256'} {entry.digest[:8]}"
    )
    classes = str(entry.classes or "-")
    numbers = [classes, str(entry.size), f"{entry.crop:.3g}"]
    return [entry.name, entry.backbone, *numbers, entry.interpolation, values, digest, entry.licence]


def _inspect(source: str, everything: bool, console: Console) -> None:
    found = weights.resolve_weights(source)
    with weights.open_weights(found) as tensors:
        shapes = {name: (tuple(t.shape), str(t.dtype)) for name, t in sorted(tensors.items(), key=_in_order)}
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for column in ("tensor", "shape", "type"):
            table.add_column(column, overflow="fold")
        rows = [(name, "×".join(map(str, shape)) or "scalar", kind) for name, (shape, kind) in shapes.items()]
        cut = len(rows) > 24 and not everything
        for row in rows[:12] if cut else rows:
            table.add_row(*row)
        if cut:
            table.add_row(f"… {len(rows) - 24} more (--all shows them)", "", "")
            for row in rows[-12:]:
                table.add_row(*row)
        console.print(table)
        best = None if found.path.is_dir() else detect_backbone(tensors)
    numbers = sum(math.prod(shape) for shape, _ in shapes.values())
    kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(kind for _, kind in shapes.values()).items())
    facts = {
        "file": str(found.path),
        "SHA-256": found.sha256,
        "tensors": f"{len(shapes)} ({kinds}), {numbers:,} numbers",
        "preprocessing": found.preprocess.name if found.preprocess else "unknown: set model.preprocess",
    }
    if best is not None:
        facts["backbone"] = f"{best.backbone}, in the names of {best.layout}"
        facts["fit"] = "every tensor has its place" if best.match.complete else best.match.describe()
    for name, value in facts.items():
        console.print(f"  {name:<14} {value}", soft_wrap=True)


def _in_order(item: tuple[str, object]) -> list[tuple[int, str]]:
    """Sorts layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", item[0])]


if __name__ == "__main__":
    sys.exit(main())
