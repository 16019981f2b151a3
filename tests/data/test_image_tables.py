"""Tables of image files: CSV, TSV, Parquet and JSON lines, their columns, labels, splits and groups, and errors."""

import csv
import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tljax import data
from tljax.config import DataConfig
from tljax.data.sources import tables
from tljax.errors import UserError

NAMES = [f"images/{i}.png" for i in range(12)]
LABELS = ["cat", "dog"] * 6


@pytest.fixture
def folder(tmp_path):
    """A folder of twelve images, numbered by their gray values."""
    (tmp_path / "images").mkdir()
    for i, name in enumerate(NAMES):
        Image.new("L", (8, 8), 10 * i).save(tmp_path / name)
    return tmp_path


def write_csv(path, columns, delimiter=","):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def list_files(path, on_error="error", **options):
    return tables.load(DataConfig(name="csv", path=str(path), options=options, on_error=on_error), "classification")


def load(path, **fields):
    return data.load(DataConfig(name="csv", path=str(path), image_size=8, **fields), 0)


@pytest.mark.parametrize("file", ["file", "Filename", "path", "IMAGE_PATH", "image"])
@pytest.mark.parametrize("label", ["label", "class", "Category", "target"])
def test_columns_are_found_by_their_names(file, label, folder):
    path = write_csv(folder / "t.csv", {"id": range(12), file: NAMES, label: LABELS})
    files = list_files(path)
    assert files.names == tuple(sorted(NAMES))
    assert files.classes == ("cat", "dog")
    assert files.splits is files.groups is None
    pixels = {name: files.labels[i] for i, name in enumerate(files.names)}
    assert [pixels[name] for name in NAMES] == [0, 1] * 6


@pytest.mark.parametrize("kind", ["csv", "semicolon", "tsv", "jsonl", "parquet"])
def test_all_types_of_tables_are_equal(kind, folder):
    splits = ["train", "val", "test"] * 4
    columns = {"file": NAMES, "label": LABELS, "split": splits, "patient": [f"p{i}" for i in range(12)]}
    if kind == "jsonl":
        path = folder / "t.jsonl"
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    elif kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        path = folder / "t.parquet"
        parquet.write_table(pyarrow.table(columns), path)
    else:
        delimiter = {"csv": ",", "semicolon": ";", "tsv": "\t"}[kind]
        path = write_csv(folder / f"t.{'tsv' if kind == 'tsv' else 'csv'}", columns, delimiter)
    files = list_files(path)
    order = sorted(range(12), key=NAMES.__getitem__)
    assert files.splits == tuple({"val": "valid"}.get(splits[i], splits[i]) for i in order)
    assert files.groups == tuple(f"p{i}" for i in order)
    assert [files.classes[label] for label in files.labels] == [LABELS[i] for i in order]
    loaded = load(path)
    assert [len(loaded.train), len(loaded.valid), loaded.test.size] == [4, 4, 4]
    assert sorted(loaded.train.images[:, 0, 0, 0]) == [0, 30, 60, 90]


def test_options_choose_columns_and_root(folder):
    columns = {
        "image": [name.removeprefix("images/") for name in NAMES],
        "path": ["x"] * 12,
        "label": LABELS,
        "class": ["c"] * 12,
        "fold": range(12),
        "site": ["s1", "s2", "s3"] * 4,
    }
    (folder / "tables").mkdir()
    path = write_csv(folder / "tables" / "t.csv", columns)
    options = {"file": "image", "label": "label", "split": "", "group": "site", "root": "../images"}
    files = list_files(path, **options)
    assert files.classes == ("cat", "dog")
    assert set(files.groups) == {"s1", "s2", "s3"}
    assert files.splits is None
    assert all(p.is_file() for p in files.paths)
    for missing, message in (
        ("file", r"several columns for the file: image, path; choose with data\.options\.file"),
        ("label", r"several columns for the label: label, class"),
        ("split", r'line 2 has "0" in the column "fold", which is not train, valid or test'),
    ):
        with pytest.raises(UserError, match=message):
            list_files(path, **{name: value for name, value in options.items() if name != missing})
    with pytest.raises(UserError, match=r'data\.options\.group: .* has no column "sit"; did you mean "site"\?'):
        list_files(path, **(options | {"group": "sit"}))


def test_labels_can_be_numbers(folder):
    path = write_csv(folder / "t.csv", {"file": NAMES, "label": [10, 2, 3] * 4})
    assert list_files(path).classes == ("2", "3", "10")
    path = write_csv(folder / "t.csv", {"file": NAMES, "label": ["10.0", "2.0"] * 6})
    assert list_files(path).classes == ("2", "10")
    path = write_csv(folder / "t.csv", {"file": NAMES, "label": ["01", "02", "10"] * 4})
    assert list_files(path).classes == ("01", "02", "10")
    path = write_csv(folder / "t.csv", {"file": NAMES, "label": [0.5, 1.0] * 6})
    with pytest.raises(UserError, match=r"line 2 has the class 0\.5: classes are text or whole numbers"):
        list_files(path)


def test_absolute_and_windows_paths_are_read(folder):
    names = [str(folder / NAMES[0]), *(name.replace("/", "\\") for name in NAMES[1:])]
    files = list_files(write_csv(folder / "t.csv", {"file": names, "label": LABELS}))
    assert all(p.is_file() for p in files.paths)


def test_byte_order_mark_and_quotes_are_read(folder):
    lines = ["\ufefffile,label", *(f'"{name}","a, {label}"' for name, label in zip(NAMES, LABELS, strict=True))]
    (folder / "t.csv").write_text("\r\n".join(lines), encoding="utf-8")
    assert list_files(folder / "t.csv").classes == ("a, cat", "a, dog")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ("file,label\n", "has no rows"),
        (
            "name,label\nimages/0.png,a\n",
            r"no column for the file \(file, filename, .*\): set data\.options\.file to one",
        ),
        ("file,kind\nimages/0.png,a\n", "no column for the label"),
        ("file,label\nimages/0.png,a\nimages/1.png\n", "line 3 has 1 values, but the header has 2"),
        ("file,label\nimages/0.png,a\nimages/1.png,\n", 'line 3 has no value in the column "label"'),
        ("file,label\nimages/0.png,a\n\nimages/0.png,b\n", r"line 4 names the same file as .*line 2: images/0\.png"),
        ("file,label\nimages/0.png,a\nimages/1.png,a\n", 'All rows have the class "a"'),
        ("file,label\nimages/0.png,a\nimages/x.png,b\n", r"line 3: there is no image .*x\.png; data\.on_error='skip'"),
        (
            "file,label\nx.png,a\ny.png,b\n",
            r"line 2: there is no image .*; 2 of 2 files are missing: set data\.options\.root",
        ),
        ("file,label,split\nimages/0.png,a,train\nimages/1.png,b,\n", 'line 3 has no value in the column "split"'),
        ('file,label\n"images/0.png,a\n', "cannot be read"),
    ],
)
def test_errors_name_the_line(text, message, folder):
    (folder / "t.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        list_files(folder / "t.csv")


def test_errors_of_other_tables(folder):
    (folder / "t.jsonl").write_text('{"file": "images/0.png", "label": "a"}\n{"file"\n')
    with pytest.raises(UserError, match=r"t\.jsonl, line 2 is not JSON"):
        list_files(folder / "t.jsonl")
    (folder / "t.jsonl").write_text("[1]\n")
    with pytest.raises(UserError, match="line 1 is not an object"):
        list_files(folder / "t.jsonl")
    (folder / "t.xlsx").write_text("")
    with pytest.raises(UserError, match=r"unknown type; did you mean|unknown type; available"):
        list_files(folder / "t.xlsx")
    with pytest.raises(UserError, match="there is no table"):
        list_files(folder / "none.csv")
    with pytest.raises(UserError, match=r"data\.name='csv' needs data\.path"):
        data.load(DataConfig(name="csv"), 0)
    pytest.importorskip("pyarrow")
    (folder / "t.parquet").write_bytes(b"x" * 20)
    with pytest.raises(UserError, match=r"t\.parquet cannot be read"):
        list_files(folder / "t.parquet")


def test_parquet_without_pyarrow_is_an_error(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (folder / "t.parquet").write_bytes(b"")
    with pytest.raises(UserError, match="needs the package pyarrow: pip install pyarrow"):
        list_files(folder / "t.parquet")


def test_missing_and_broken_files_are_skipped_if_asked(folder):
    (folder / NAMES[3]).unlink()
    (folder / NAMES[4]).write_bytes(b"x")
    path = write_csv(folder / "t.csv", {"file": NAMES, "label": LABELS})
    loaded = load(path, on_error="skip")
    assert loaded.skipped == (NAMES[3], NAMES[4])
    assert len(loaded.train) + len(loaded.valid) + loaded.test.size == 10


def test_groups_stay_together_and_given_splits_are_checked(folder):
    groups = ["a", "a", "b", "b", "c", "c", "d", "d", "e", "e", "f", "f"]
    path = write_csv(folder / "t.csv", {"file": NAMES, "label": LABELS, "patient_id": groups})
    loaded = load(path)
    group_of = {10 * i: group for i, group in enumerate(groups)}
    splits = (loaded.train, loaded.valid, loaded.test.open())
    sets = [{group_of[value] for value in split.images[:, 0, 0, 0].tolist()} for split in splits]
    assert sum(map(len, sets)) == len(set.union(*sets)) == 6
    columns = {"file": NAMES, "label": LABELS, "patient": groups, "split": ["train"] * 5 + ["test"] * 7}
    with pytest.raises(UserError, match='The group "c" is in the splits train and test'):
        load(write_csv(folder / "t.csv", columns))
    loaded = load(folder / "t.csv", options={"group": ""})
    assert loaded.test.size == 7


@given(st.permutations(range(12)))
def test_order_of_rows_does_not_matter(order):
    table = tables.Table(("file", "label"), [{"file": NAMES[i], "label": LABELS[i]} for i in order], [""] * 12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "read_table", lambda path: table)
        files = list_files("t.csv", on_error="skip")
    assert files.names == tuple(sorted(NAMES))
    assert [files.classes[label] for label in files.labels] == [LABELS[NAMES.index(name)] for name in files.names]


def test_emoji_table_equals_its_folders():
    root = os.environ.get("TLJAX_DATA_DIR")
    if root is None:
        pytest.skip("TLJAX_DATA_DIR is not set")
    files = list_files(f"{root}/emoji/google.csv")
    assert len(files) == 1906
    folders = [name.split("/")[1] for name in files.names]
    assert [files.classes[label] for label in files.labels] == folders
    assert np.bincount(files.labels).min() == 85
