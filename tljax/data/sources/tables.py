"""Tables of image files and their classes: CSV, TSV, Parquet or JSON lines."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tljax.config import DataConfig
from tljax.config.fields import field
from tljax.data.labeled_files import SPLIT_NAMES, LabeledFiles
from tljax.data.sources.options import parse_options
from tljax.data.sources.records import read_text
from tljax.errors import UserError, did_you_mean

COLUMN_NAMES = {
    "file": (
        *("file", "filename", "file_name", "filepath", "file_path", "path", "image", "image_path", "image_file"),
        *("image_name", "img", "img_path"),
    ),
    "label": ("label", "class", "category", "target", "class_name", "label_name", "category_name"),
    "split": ("split", "subset", "partition", "fold"),
    "group": ("group", "group_id", "patient", "patient_id", "subject", "subject_id", "participant"),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Columns of the table, and the folder of the images."""

    file: str | None = field(None, "column of the files; None: found by its name")
    label: str | None = field(None, "column of the classes; None: found by its name")
    split: str | None = field(None, "column of the splits; None: found by its name; '': none")
    group: str | None = field(None, "column of the groups; None: found by its name; '': none")
    root: str | None = field(None, "folder that the files are relative to, itself relative to the folder of the table")


class Table(NamedTuple):
    """The rows of a table.

    Attributes:
      columns: names.
      rows: {column: value}, None or "" where there is no value.
      origins: where each row is, for messages, e.g. "labels.csv, line 2".
    """

    columns: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    origins: Sequence[str]


def load(config: DataConfig, task: str) -> LabeledFiles:
    """List the images in a table.

    Args:
      config: the data section of the config.
      task: "classification".

    Raises:
      UserError: the table cannot be read, a column is missing or ambiguous, or a row is incomplete or contradicts
        another one; the message names the row.
    """
    options = parse_options(config, Options)
    if config.path is None:
        raise UserError("data.name='csv' needs data.path, the table (.csv, .tsv, .parquet or .jsonl).")
    path = Path(config.path)
    table = read_table(path)
    columns = {kind: _find_column(table, kind, getattr(options, kind), path) for kind in COLUMN_NAMES}
    files = [_text(table, i, columns["file"]) for i in range(len(table.rows))]
    # Tables written on Windows have backslashes.
    names = [name if os.sep == "\\" else name.replace("\\", "/") for name in files]
    _check_unique(table, names)
    order = sorted(range(len(names)), key=names.__getitem__)
    classes, labels = _parse_labels(table, columns["label"])
    root = path.parent / (options.root or "")
    if not root.is_dir():
        raise UserError(f"data.options.root: there is no folder {root}.")
    paths = [root / name for name in names]
    if config.on_error == "error":
        _check_exist(table, paths)
    splits, group = columns["split"], columns["group"]
    return LabeledFiles(
        names=tuple(names[i] for i in order),
        paths=tuple(paths[i] for i in order),
        labels=labels[order],
        classes=classes,
        splits=tuple(_parse_split(table, i, splits) for i in order) if splits else None,
        groups=tuple(_text(table, i, group) for i in order) if group else None,
    )


def read_table(path: Path) -> Table:
    """Read a table; its type is that of the file's suffix.

    Raises:
      UserError: the file is missing, of another type, or broken, or a package to read it is not installed.
    """
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".txt": _read_csv, ".jsonl": _read_json, ".ndjson": _read_json}
    readers |= {".parquet": _read_parquet, ".pq": _read_parquet}
    if not path.is_file():
        raise UserError(f"data.path: there is no table {path}.")
    if path.suffix.lower() not in readers:
        raise UserError(f"{path} has an unknown type{did_you_mean(path.suffix.lower(), readers)}")
    table = readers[path.suffix.lower()](path)
    if not table.rows:
        raise UserError(f"{path} has no rows.")
    return table


def _read_csv(path: Path) -> Table:
    text = read_text(path).removeprefix("\ufeff")
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    rows, origins = [], []
    columns: list[str] = []
    try:
        for values in reader:
            origin = f"{path}, line {reader.line_num}"
            if not any(value.strip() for value in values):
                continue
            if not columns:
                columns = [value.strip() for value in values]
                continue
            if len(values) != len(columns):
                raise UserError(f"{origin} has {len(values)} values, but the header has {len(columns)}.")
            rows.append(dict(zip(columns, values, strict=True)))
            origins.append(origin)
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num} cannot be read: {error}.") from error
    return Table(columns, rows, origins)


def _read_json(path: Path) -> Table:
    rows, origins = [], []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        origin = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{origin} is not JSON: {error}.") from error
        if not isinstance(row, dict):
            raise UserError(f"{origin} is not an object of column names and values.")
        rows.append(row)
        origins.append(origin)
    return Table(list(dict.fromkeys(name for row in rows for name in row)), rows, origins)


def _read_parquet(path: Path) -> Table:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise UserError(f"{path} needs the package pyarrow: pip install pyarrow, or save the table as CSV.") from error
    try:
        rows = parquet.read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}.") from error
    columns = list(rows[0]) if rows else []
    return Table(columns, rows, [f"{path}, row {i}" for i in range(1, len(rows) + 1)])


def _find_column(table: Table, kind: str, name: str | None, path: Path) -> str | None:
    """Return the column of a kind; None if there is none and it is optional.

    Args:
      table: the table.
      kind: key of `COLUMN_NAMES`.
      name: as the options give it, or None.
      path: of the table, for messages.
    """
    optional = kind in ("split", "group")
    if name == "" and optional:
        return None
    if name is not None:
        if name not in table.columns:
            raise UserError(f'data.options.{kind}: {path} has no column "{name}"{did_you_mean(name, table.columns)}')
        return name
    matches = [column for column in table.columns if column.strip().lower() in COLUMN_NAMES[kind]]
    if len(matches) > 1:
        raise UserError(
            f"{path} has several columns for the {kind}: {', '.join(matches)}; choose with data.options.{kind}."
        )
    if not matches and not optional:
        raise UserError(
            f"{path} has no column for the {kind} ({', '.join(COLUMN_NAMES[kind][:4])}, ...): set data.options.{kind} "
            f"to one of {', '.join(table.columns)}."
        )
    return matches[0] if matches else None


def _text(table: Table, row: int, column: str | None) -> str:
    """Return a value as text. Raises UserError if there is none."""
    value = table.rows[row].get(column or "")
    text = "" if value is None or value != value else str(value).strip()  # NaN differs from itself
    if not text:
        raise UserError(f'{table.origins[row]} has no value in the column "{column}".')
    return text


def _parse_split(table: Table, row: int, column: str) -> str:
    text = _text(table, row, column)
    if text.lower() not in SPLIT_NAMES:
        raise UserError(
            f'{table.origins[row]} has "{text}" in the column "{column}", which is not train, valid or test; '
            "data.options.split='' leaves the column out."
        )
    return SPLIT_NAMES[text.lower()]


def _parse_labels(table: Table, column: str | None) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the class names, and the label of each row; numbers are sorted as numbers, 2 before 10."""
    texts = [_text(table, i, column) for i in range(len(table.rows))]
    numbers = [_number(text) for text in texts]
    if any(number is None for number in numbers):
        classes = sorted(set(texts))
    else:
        for number, origin in zip(numbers, table.origins, strict=True):
            if number is not None and number != int(number):
                raise UserError(f"{origin} has the class {number}: classes are text or whole numbers.")
        # A column of numbers with gaps is saved as 1.0, 2.0; but 01 stays a name.
        texts = [text if text.isdecimal() else str(int(float(text))) for text in texts]
        classes = sorted(set(texts), key=lambda text: (int(text), text))
    if len(classes) < 2:
        raise UserError(f'All rows have the class "{classes[0]}" in the column "{column}"; two classes are needed.')
    index = {name: i for i, name in enumerate(classes)}
    return tuple(classes), np.array([index[text] for text in texts], np.int32)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _check_exist(table: Table, paths: Sequence[Path]) -> None:
    """Raise UserError if a file does not exist."""
    missing = [row for row, path in enumerate(paths) if not path.exists()]
    if missing:
        count = f"{len(missing)} of {len(paths)} files are missing: set data.options.root, the folder of the files"
        advice = f"{count}, or data.on_error='skip'" if len(missing) > 1 else "data.on_error='skip' leaves it out"
        raise UserError(f"{table.origins[missing[0]]}: there is no image {paths[missing[0]]}; {advice}.")


def _check_unique(table: Table, names: Sequence[str]) -> None:
    """Raise UserError if two rows name the same file."""
    first: dict[str, int] = {}
    for row, name in enumerate(names):
        other = first.setdefault(os.path.normpath(name), row)
        if other != row:
            raise UserError(f"{table.origins[row]} names the same file as {table.origins[other]}: {name}.")
