"""`python -m tljax.weights`: list published weights, inspect files, and convert them to other libraries' layouts."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from tljax import weights
from tljax.errors import TljaxError, UserError, did_you_mean
from tljax.weights.catalog import CATALOG, PretrainedConfig
from tljax.weights.convert import convert
from tljax.weights.detect import detect_backbone


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
      arguments: command line without the program's name; `sys.argv` by default.
    """
    options = _make_parser().parse_args(arguments)
    # Names from a file are printed verbatim, including brackets and colons.
    verbatim: dict[str, Any] = {"markup": False, "highlight": False, "emoji": False}
    console = Console(width=None if sys.stdout.isatty() else 200, **verbatim)
    try:
        if options.command == "inspect":
            _inspect(options.source, options.all, console)
        elif options.command in ("convert", "export"):
            report = convert(options.source, options.out, options.layout)
            console.print(f"{options.out}: {report.describe()}")
        else:
            _list(getattr(options, "pattern", "*"), console)
    except TljaxError as error:
        print(f"{error.label}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tljax.weights", description=(__doc__ or "").partition(": ")[2])
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    description = "list published weights (the default)"
    command = commands.add_parser("list", help=description, description=description)
    command.add_argument("pattern", nargs="?", default="*", help="shell pattern of names, e.g. '*resnet50*'")
    description = "show a file's backbone, layout and tensors, and what does not match"
    command = commands.add_parser("inspect", help=description, description=description)
    command.add_argument("source", help="file, hf:OWNER/REPO, package:NAME/FILE, workdir:PATH, or a name from the list")
    command.add_argument("--all", action="store_true", help="show every tensor, not only the first and last few")
    description = "write weights as .safetensors in another library's layout (torchvision's, if it has the network)"
    command = commands.add_parser("convert", aliases=["export"], help=description, description=description)
    description = "file, hf:OWNER/REPO, package:NAME/FILE, workdir:PATH (a finished run), or a name from the list"
    command.add_argument("source", help=description)
    command.add_argument("out", type=Path, help="the .safetensors file to write")
    command.add_argument("--layout", help="torchvision, timm, keras, ...; default: the first layout of the family")
    return parser


def _list(pattern: str, console: Console) -> None:
    """Print a table of the catalog entries whose name matches a shell pattern."""
    entries = weights.list_weights(pattern)
    if not entries:
        raise UserError(f'No published weights match "{pattern}"{did_you_mean(pattern.strip("*"), CATALOG)}')
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    # Users copy the names, so the other columns shrink first.
    table.add_column("name", min_width=max(len(entry.name) for entry in entries), overflow="fold")
    for column in (
        "backbone",
        "classes",
        "size",
        "crop",
        "interpolation",
        "preprocessing",
        "digest",
        "license",
    ):
        table.add_column(column, justify="right" if column in ("classes", "size", "crop") else "left")
    for entry in entries:
        table.add_row(*_row(entry))
    console.print(table)
    console.print(f"{len(entries)} of {len(CATALOG)}. Sources: tljax.weights.CATALOG[name].source.")


def _row(entry: PretrainedConfig) -> list[str]:
    """Return the cells of a catalog entry."""
    normalization = entry.normalization
    if not isinstance(normalization, str):
        normalization = " / ".join(",".join(f"{x:.3g}" for x in values) for values in normalization)
    digest = "from the Hub"
    if entry.digest is not None:
        digest = f"{'MD5' if entry.digest_is_md5 else 'SHA-256'} {entry.digest[:8]}"
    numbers = [str(entry.num_classes or "-"), str(entry.image_size), f"{entry.crop:.3g}"]
    return [entry.name, entry.backbone, *numbers, entry.interpolation, normalization, digest, entry.license]


def _inspect(source: str, show_all: bool, console: Console) -> None:
    """Print the tensors of a weights source, the detected backbone and what does not match."""
    resolved = weights.resolve_weights(source)
    with weights.open_weights(resolved) as tensors:
        shapes = {name: (tuple(t.shape), str(t.dtype)) for name, t in sorted(tensors.items(), key=_natural_order)}
        _print_tensors(shapes, show_all, console)
        best = None if resolved.path.is_dir() else detect_backbone(tensors)
    num_values = sum(math.prod(shape) for shape, _ in shapes.values())
    dtypes = ", ".join(f"{n} {dtype}" for dtype, n in Counter(dtype for _, dtype in shapes.values()).items())
    summary = {
        "file": str(resolved.path),
        "SHA-256": resolved.sha256,
        "tensors": f"{len(shapes)} ({dtypes}), {num_values:,} values",
        "preprocessing": resolved.preprocess.name if resolved.preprocess else "unknown: set model.preprocess",
    }
    if best is not None:
        summary["backbone"] = f"{best.backbone} ({best.layout} layout)"
        summary["match"] = "all tensors and variables match" if best.match.complete else best.match.describe()
    for name, value in summary.items():
        console.print(f"  {name:<14} {value}", soft_wrap=True)


def _print_tensors(shapes: Mapping[str, tuple[tuple[int, ...], str]], show_all: bool, console: Console) -> None:
    """Print a table of tensors; without `show_all`, at most the first and last 12.

    Args:
      shapes: {name: (shape, dtype)}.
      show_all: print every tensor.
      console: where to print.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("tensor", "shape", "type"):
        table.add_column(column, overflow="fold")
    rows = [(name, "×".join(map(str, shape)) or "scalar", dtype) for name, (shape, dtype) in shapes.items()]
    shortened = len(rows) > 24 and not show_all
    for row in rows[:12] if shortened else rows:
        table.add_row(*row)
    if shortened:
        table.add_row(f"… {len(rows) - 24} more (use --all)", "", "")
        for row in rows[-12:]:
            table.add_row(*row)
    console.print(table)


def _natural_order(item: tuple[str, object]) -> list[tuple[int, str]]:
    """Return a sort key that puts layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", item[0])]


if __name__ == "__main__":
    sys.exit(main())
