"""`python -m tljax.data`: inspect a data set before a run: classes, sizes, bad files, duplicates and splits."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from tljax import data as data_lib
from tljax.config import Config, DataConfig
from tljax.data.inspect import Inspection, inspect_files
from tljax.data.labeled_files import SPLITS, LabeledFiles, assign_splits
from tljax.data.sources import registry
from tljax.errors import TljaxError, UserError

MAX_LISTED = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
      arguments: command line without the program's name; `sys.argv` by default.
    """
    options = _make_parser().parse_args(arguments)
    verbatim: dict[str, Any] = {"markup": False, "highlight": False, "emoji": False, "soft_wrap": True}
    console = Console(**verbatim)
    try:
        _inspect(options.target, options.sheet, options.columns, console)
    except TljaxError as error:
        print(f"{error.label}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tljax.data", description=(__doc__ or "").partition(": ")[2])
    parser.add_argument("target", help="a folder of images, a table (.csv, .tsv, .jsonl, .parquet), or a config (.py)")
    parser.add_argument(
        "--sheet", type=Path, default=Path("contact_sheet.png"), help="the PNG to write (default: %(default)s)"
    )
    parser.add_argument("--columns", type=int, default=8, help="images of each class in it (default: %(default)s)")
    return parser


def _inspect(target: str, sheet: Path, columns: int, console: Console) -> None:
    if columns < 1:
        raise UserError(f"--columns must be at least 1, got {columns}.")
    config = _make_config(target)
    source = registry.load_source(config.data, "classification" if not target_is_config(target) else _labels(config))
    if isinstance(source, LabeledFiles):
        inspection = inspect_files(source, columns)
        _print_files(source, inspection, config.data, console)
        images = {name: [] for name in source.classes}
        for i, thumbnail in inspection.thumbnails.items():
            images[source.classes[source.labels[i]]].append(thumbnail)
    else:
        splits = data_lib.prepare_splits(source, config.data, config.seed)
        _print_splits(splits, console)
        images = _images_by_class(splits, columns)
    if any(images.values()):
        from tljax.report.contact_sheet import draw_contact_sheet  # imported here: Matplotlib takes a second

        console.print(f"\nContact sheet: {draw_contact_sheet(images, columns, sheet)}")
    if not target_is_config(target):
        _print_config(config.data, console)


def target_is_config(target: str) -> bool:
    """Return whether the target is a config file, maybe with an argument."""
    return target.partition(":")[0].endswith(".py")


def _make_config(target: str) -> Config:
    if target_is_config(target):
        from tljax.run.config_files import load_config_file

        return load_config_file(target)
    path = Path(target)
    if not path.exists():
        raise UserError(f"There is no folder, table or config {target}.")
    return Config(data=DataConfig(name="folder" if path.is_dir() else "csv", path=str(path), on_error="skip"))


def _labels(config: Config) -> str:
    from tljax.tasks import task_of  # imported here: a folder needs no task, whose import takes seconds

    return task_of(config).labels


def _print_files(files: LabeledFiles, inspection: Inspection, config: DataConfig, console: Console) -> None:
    good = np.array([name not in inspection.errors for name in files.names], bool)
    assigned = np.where(good, 0, -1)
    if good.any():
        assigned[good] = assign_splits(files.select(np.flatnonzero(good)), config)
    console.print(f"{config.path}: {len(files):,} images in {len(files.classes)} classes")
    origin = "of the source" if files.splits else "held out by the hash of the names"
    grouped = "" if files.groups is None else f", in {len(set(files.groups)):,} groups that stay in one split"
    counts = {
        name: np.bincount(files.labels[assigned == i], minlength=len(files.classes)) for i, name in enumerate(SPLITS)
    }
    _print_counts(files.classes, counts, console)
    console.print(f"splits: {origin}{grouped}")
    if len(inspection.sizes):
        low, middle, high = (np.percentile(inspection.sizes, q, axis=0).astype(int) for q in (0, 50, 100))
        texts = ["×".join(map(str, size)) for size in (low, middle, high)]
        console.print(f"width×height: min {texts[0]}, median {texts[1]}, max {texts[2]}")
    console.print("formats: " + ", ".join(f"{kind} {n:,}" for kind, n in inspection.formats.most_common()))
    if inspection.num_transparent:
        console.print(
            f"{inspection.num_transparent:,} images may have transparent pixels, shown on data.background="
            f"{config.background!r}"
        )
    if inspection.num_rotated:
        console.print(f"{inspection.num_rotated:,} images are rotated or mirrored by their EXIF orientation")
    _print_list("files are not images and are ignored", files.ignored, console)
    _print_list("images cannot be read", list(inspection.errors.values()), console)
    _print_duplicates(files, inspection.duplicates, assigned, console)


def _print_counts(classes: Sequence[str], counts: dict[str, np.ndarray], console: Console) -> None:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("class", overflow="fold")
    for name in ("images", *counts):
        table.add_column(name, justify="right")
    columns = [sum(counts.values()), *counts.values()]
    for i, name in enumerate(classes):
        table.add_row(name, *(f"{column[i]:,}" for column in columns))
    table.add_row("all", *(f"{column.sum():,}" for column in columns))
    console.print(table)
    for i, name in enumerate(classes):
        for split in ("train", "valid"):
            if not counts[split][i]:
                console.print(f'Problem: class "{name}" has no images in the split {split}.')


def _print_duplicates(files: LabeledFiles, groups: list[list[int]], assigned: np.ndarray, console: Console) -> None:
    across = [group for group in groups if len({assigned[i] for i in group}) > 1]
    conflicts = [group for group in groups if len({files.labels[i] for i in group}) > 1]
    console.print(
        f"duplicates: {len(groups):,} groups of images with equal pixels, {len(across):,} of them in more than one "
        f"split, {len(conflicts):,} in more than one class"
    )
    for group in [*conflicts, *(group for group in across if group not in conflicts)][:MAX_LISTED]:
        console.print("  " + " = ".join(f"{files.names[i]} ({SPLITS[assigned[i]]})" for i in group))


def _print_list(description: str, items: Sequence[str], console: Console) -> None:
    if items:
        console.print(f"{len(items):,} {description}:")
        for item in items[:MAX_LISTED]:
            console.print(f"  {item}")
        if len(items) > MAX_LISTED:
            console.print("  ...")


def _print_splits(splits: data_lib.DataSplits, console: Console) -> None:
    facts = splits.describe()
    height, width, channels = facts["image_shape"]
    sizes = {name: facts[name]["size"] for name in (*SPLITS, "unlabelled") if name in facts}
    console.print(f"{splits.name}: images of {width}×{height} with {channels} channels, {len(splits.classes)} classes")
    console.print("images: " + ", ".join(f"{name} {size:,}" for name, size in sizes.items()))
    if splits.train.labels.ndim == 1:
        labels = {"train": splits.train.labels, "valid": splits.valid.labels, "test": splits.test.fresh().open().labels}
        counts = {name: np.bincount(rows, minlength=len(splits.classes)) for name, rows in labels.items()}
        _print_counts(splits.classes, counts, console)
    _print_list("files could not be read", splits.skipped, console)
    console.print("images in two splits: " + ", ".join(f"{pair} {n}" for pair, n in splits.duplicates.items()))


def _images_by_class(splits: data_lib.DataSplits, columns: int) -> dict[str, list[np.ndarray]]:
    """Return the first training images of each class; of masks and boxes, of all classes together."""
    train = splits.train
    if train.labels.ndim != 1:
        return {"train": list(train.images[: 8 * columns])}
    rows = {name: np.flatnonzero(train.labels == i)[:columns] for i, name in enumerate(splits.classes)}
    return {name: list(train.images[index]) for name, index in rows.items()}


def _print_config(config: DataConfig, console: Console) -> None:
    console.print("\nTo use these images in a config:")
    console.print(f'  c.data.name = "{config.name}"')
    console.print(f'  c.data.path = "{config.path}"')
    console.print("or on the command line:")
    name = "" if config.name == "folder" else f" --config.data.name={config.name}"
    console.print(f"  python run.py --config=configs/images.py{name} --config.data.path={config.path}")


if __name__ == "__main__":
    sys.exit(main())
