"""YOLO text files: relative boxes, class names in every form, and invalid lines."""

import numpy as np
import pytest
from PIL import Image

from tljax.config import DataConfig
from tljax.data.sources import registry
from tljax.data.sources.yolo import _yaml_names
from tljax.errors import UserError

OPTIONS = {"classes": ("ant", "bee")}


@pytest.fixture
def folder(tmp_path):
    texts = {
        "train": {"a": "1 0.5 0.5 0.5 1\n\n0 0.1 0.25 0.4 0.5", "b": None, "c": ""},
        "val": {"d": "0 0.5 0.5 0 0.5"},
    }
    for split, files in texts.items():
        for kind in ("images", "labels"):
            (tmp_path / kind / split).mkdir(parents=True)
        for name, text in files.items():
            Image.new("L", (20, 10), 9).save(tmp_path / "images" / split / f"{name}.jpg")
            if text is not None:
                (tmp_path / "labels" / split / f"{name}.txt").write_text(text)
    return tmp_path


def load(folder, on_error="error", options=OPTIONS):
    return registry.load_source(
        DataConfig(name="yolo", path=str(folder), options=options, on_error=on_error), "detection"
    )


def test_boxes_are_relative_centers_and_sides(folder):
    source = load(folder)
    assert source.classes == ("ant", "bee")
    assert source.train.images.shape == (3, 10, 20, 1)
    # The second box is clipped to the image.
    assert source.train.boxes[0] == pytest.approx(np.array([[0, 5, 10, 15], [0, 0, 5, 6]]))
    assert source.train.labels.tolist() == [[1, 0], [-1, -1], [-1, -1]]
    assert source.test.labels.tolist() == [[-1, -1]]  # a box without width
    assert source.valid is None


def test_val_is_the_validation_split_if_there_is_a_test_folder(folder):
    for kind in ("images", "labels"):
        (folder / kind / "val").rename(folder / kind / "test")
        (folder / kind / "val").symlink_to(folder / kind / "train")
    source = load(folder)
    assert (len(source.train), len(source.valid), len(source.test)) == (3, 3, 1)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("names: [ant, 'bee or wasp', \"fly, big\"]\nnc: 3", ["ant", "bee or wasp", "fly, big"]),
        ("nc: 2\nnames:\n- ant\n- 'bee' # stings\ntrain: x", ["ant", "bee"]),
        ("path: x\n# names: [no]\nnames:\n  0: ant\n  1: bee\n\nnc: 2", ["ant", "bee"]),
        ("names:\n  1: bee\n  0: ant\n", ["ant", "bee"]),
        ("names: {0: ant, 1: 'bee'}", ["ant", "bee"]),
        ("names: [\n  'ant',\n  'bee',\n]\nnc: 2", ["ant", "bee"]),
        ("names: [0, 1]", ["0", "1"]),
        ("nc: 2", []),
        ("names: []", []),
        ("names:\n  0: ant\n  2: bee", []),
        ("names: &anchor", []),
    ],
)
def test_yaml_names_in_every_form(text, names):
    assert _yaml_names(text) == names


def test_class_names_are_read_from_files(folder):
    with pytest.raises(UserError, match=r"has no class names: set data\.options\.classes"):
        load(folder, options={})
    (folder / "classes.txt").write_text("wasp\nfly\n")
    assert load(folder, options={}).classes == ("wasp", "fly")
    (folder / "data.yaml").write_text("names: [ant, bee]")
    assert load(folder, options={}).classes == ("ant", "bee")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.1 0.1", r"has the class 2, but there are names for 0\.\.1"),
        ("-1 0.5 0.5 0.1 0.1", "has the class -1"),
        ("0 0.5 nan 0.1 0.1", "is not an integer and four finite numbers"),
        ("0 0.5 0.5 0.1", "is not an integer and four finite numbers"),
        ("0 0.5 0.5 0.1 0.1 0.2 0.2", "is not an integer and four finite numbers"),
        ("ant 0.5 0.5 0.1 0.1", "is not an integer"),
        ("0 10 5 4 4", r"must have numbers in 0\.\.1"),
    ],
)
def test_bad_line_raises_or_image_is_skipped(folder, line, message):
    (folder / "labels" / "train" / "c.txt").write_text(f"0 0.5 0.5 0.1 0.1\n{line}\n")
    with pytest.raises(UserError, match=rf"labels/train/c\.txt, line 2, {message}"):
        load(folder)
    source = load(folder, "skip")
    assert [s.rsplit("/", 1)[1] for s in source.skipped] == ["c.jpg"]
    assert len(source.train) == 2


def test_labels_without_image_and_invalid_text_raise(folder):
    (folder / "images" / "train" / "a.jpg").unlink()
    with pytest.raises(UserError, match=r"There is no image for .*labels/train/a\.txt"):
        load(folder)
    assert [s.rsplit("/", 1)[1] for s in load(folder, "skip").skipped] == ["a.txt"]
    (folder / "labels" / "train" / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"b\.txt cannot be read"):
        load(folder)
