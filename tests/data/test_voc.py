"""Pascal VOC: boxes in pixels counted from 1, difficult objects, palette masks, and invalid files."""

import numpy as np
import pytest
from PIL import Image

from tljax.config import DataConfig
from tljax.data.sources import registry
from tljax.errors import UserError

OBJECT = """<object><name>{}</name><difficult>{}</difficult>
<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>
<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"""


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "VOC2007"
    for name in ("Annotations", "SegmentationClass", "JPEGImages", "ImageSets/Main", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    objects = {
        "a1": OBJECT.format("dog", 0, 1, 1, 20, 10) + OBJECT.format("person", 1, 5, 3, 5, 4),
        "a2": "",
        "a3": OBJECT.format("cat", 0, 2.5, 3, 90, 8),
    }
    for name, text in objects.items():
        Image.new("RGB", (20, 10), (40, 90, 200)).save(root / "JPEGImages" / f"{name}.jpg")
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{text}</annotation>")
        mask = Image.fromarray(np.full((10, 20), 12, np.uint8), "P")
        mask.putpalette(bytes(range(256)) * 3)
        mask.putpixel((3, 1), 255)
        mask.putpixel((4, 1), 0)
        mask.save(root / "SegmentationClass" / f"{name}.png")
    for kind in ("Main", "Segmentation"):
        (root / "ImageSets" / kind / "train.txt").write_text("a1\na2\n")
        (root / "ImageSets" / kind / "val.txt").write_text("a3  1\n\n")
    return tmp_path


def load(path, task, on_error="error", **options):
    return registry.load_source(DataConfig(name="voc", path=str(path), options=options, on_error=on_error), task)


def test_boxes_count_from_one_and_include_the_last_pixel(folder):
    source = load(folder, "detection")
    assert source.train.boxes[0].tolist() == [[0, 0, 10, 20], [2, 4, 4, 5]]
    assert [source.classes[k] for k in source.train.labels[0]] == ["dog", "person"]
    assert source.train.crowd[0].tolist() == [False, True]
    assert source.train.labels[1].tolist() == [-1, -1]
    assert source.test.boxes[0, 0].tolist() == [2, 1.5, 8, 20]
    assert len(source.classes) == 20


def test_masks_are_palette_indices(folder):
    source = load(folder / "VOC2007", "segmentation")
    assert source.classes[12] == "dog"
    assert source.train.labels[0, 1, 2:6].tolist() == [12, 255, 0, 12]
    assert len(source.classes) == 21


def test_lists_can_be_chosen_by_name(folder):
    source = load(folder, "detection", train="val", test="train", valid="val")
    assert (len(source.train), len(source.valid), len(source.test)) == (1, 1, 2)
    with pytest.raises(UserError, match=r'no list .*tain\.txt; did you mean "train"'):
        load(folder, "detection", train="tain")


BAD = {
    "class": (OBJECT.format("dogg", 0, 1, 1, 2, 2), 'the unknown class "dogg"; did you mean "dog"'),
    "nan": (OBJECT.format("dog", 0, "nan", 1, 2, 2), "bndbox/xmin is 'nan', not a finite number"),
    "word": (OBJECT.format("dog", 0, 1, "", 2, 2), "bndbox/ymin is '', not a finite number"),
    "no box": ("<object><name>dog</name></object>", "bndbox/xmin is None"),
    "open": ("<object>", "is not XML: mismatched tag: line 1"),
    "entities": ('<!DOCTYPE a [<!ENTITY b "c">]>', "has a document type"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_xml_raises_or_image_is_skipped(folder, name):
    text, message = BAD[name]
    path = folder / "VOC2007" / "Annotations" / "a1.xml"
    path.write_text(text if name == "entities" else f"<annotation>{text}</annotation>")
    with pytest.raises(UserError, match=rf"a1\.xml .*{message}"):
        load(folder, "detection")
    source = load(folder, "detection", "skip")
    assert [s.rsplit("/", 1)[1] for s in source.skipped] == ["a1.jpg"]
    assert len(source.train) == 1


@pytest.mark.parametrize("missing", ["Annotations/a1.xml", "JPEGImages/a1.jpg"])
def test_missing_files_raise_or_are_skipped(folder, missing):
    (folder / "VOC2007" / missing).unlink()
    with pytest.raises(UserError, match=missing):
        load(folder, "detection")
    assert len(load(folder, "detection", "skip").train) == 1


def test_document_type_in_utf16_is_rejected(folder):
    text = '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'
    (folder / "VOC2007" / "Annotations" / "a1.xml").write_text(text, encoding="utf-16")
    with pytest.raises(UserError, match="is not supported"):
        load(folder, "detection")


def test_mask_with_an_unknown_class_raises(folder):
    Image.fromarray(np.full((10, 20), 21, np.uint8)).save(folder / "VOC2007" / "SegmentationClass" / "a1.png")
    with pytest.raises(UserError, match=r"SegmentationClass/a1\.png has the value 21"):
        load(folder, "segmentation")


def test_no_year_and_several_years_raise(folder, tmp_path):
    with pytest.raises(UserError, match="neither ImageSets nor a folder such as VOC2007"):
        load(folder / "VOC2007" / "Annotations", "detection")
    (tmp_path / "VOC2012").mkdir()
    with pytest.raises(UserError, match=r"has VOC2007, VOC2012: set data\.path to one"):
        load(folder, "detection")
