"""COCO files compared with pycocotools: boxes, crowds, polygons and run lengths; and invalid files."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coding
from pycocotools.coco import COCO

from tljax.config import DataConfig
from tljax.data.sources import registry
from tljax.data.sources.coco import _decode_region
from tljax.errors import UserError

H, W = 12, 16


def disc(y, x, r):
    ys, xs = np.mgrid[:H, :W]
    return ((ys - y) ** 2 + (xs - x) ** 2 <= r * r).astype(np.uint8, order="F")


def compressed(mask):
    code = coding.encode(np.asfortranarray(mask))
    return {"size": code["size"], "counts": code["counts"].decode()}


def uncompressed(mask):
    runs = [(value, len(list(run))) for value, run in itertools.groupby(mask.T.ravel())]
    return {"size": [H, W], "counts": [0] * int(runs[0][0]) + [count for _, count in runs]}


def annotation(i, image, category, bbox, segmentation, crowd=0):
    names = ("id", "image_id", "category_id", "bbox", "segmentation", "iscrowd")
    return dict(zip(names, (i, image, category, bbox, segmentation, crowd), strict=True))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        (tmp_path / split).mkdir()
        images = [{"id": 10 * k, "file_name": f"{k}.png", "height": H, "width": W} for k in (1, 2, 3)]
        for k in (1, 2, 3):
            Image.new("RGB", (W, H), (k, 0, 0)).save(tmp_path / split / f"{k}.png")
        annotations = [
            annotation(1, 10, 90, [1, 2, 4.5, 3], [[1, 2, 9, 2, 9, 9, 1, 9], [11, 1, 15, 1, 13, 5]]),
            annotation(2, 10, 7, [0, 0, 16, 12], compressed(disc(6, 6, 2))),
            annotation(3, 10, 7, [3, 3, 5, 5], uncompressed(disc(7, 11, 4)), crowd=1),
            annotation(4, 30, 7, [3, 3, 0, 5], uncompressed(disc(0, 0, 3))),
            annotation(5, 30, 90, [-3, 3, 5, 50], compressed(disc(6, 8, 40))),
        ]
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 90, "name": "dog"}, {"id": 7, "name": "cat"}],
        }
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return tmp_path


def load(folder, task, on_error="error", image_size=None, **options):
    config = DataConfig(name="coco", path=str(folder), image_size=image_size, options=options, on_error=on_error)
    return registry.load_source(config, task)


def edit_json(folder, edit, split="train2017"):
    path = folder / "annotations" / f"instances_{split}.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_boxes_classes_and_crowds(folder):
    source = load(folder, "detection")
    assert source.classes == ("cat", "dog")
    assert source.train.images[:, 0, 0, 0].tolist() == [1, 2, 3]
    assert source.train.labels.tolist() == [[1, 0, 0], [-1, -1, -1], [1, -1, -1]]
    assert source.train.crowd.tolist() == [[False, False, True], [False] * 3, [False] * 3]
    # bbox is x, y, width, height; boxes without area are left out, others are clipped to the image.
    assert source.train.boxes[0].tolist() == [[2, 1, 5, 5.5], [0, 0, 12, 16], [3, 3, 8, 8]]
    assert source.train.boxes[2].tolist() == [[3, 0, 12, 2], [0] * 4, [0] * 4]


def test_boxes_are_scaled_with_their_images(folder):
    split = load(folder, "detection", image_size=24).train
    assert split.images.shape == (3, 24, 24, 3)
    assert split.boxes[0, 0].tolist() == [4, 1.5, 10, 8.25]


def test_all_splits_are_padded_to_the_max_number_of_boxes(folder):
    box = {"image_id": 20, "category_id": 7, "bbox": [1, 1, 2, 2]}
    edit_json(folder, lambda c: c["annotations"].extend([box] * 1000), "val2017")
    source = load(folder, "detection")
    assert source.train.labels.shape == (3, 1000)
    assert (source.test.labels[1] == 0).all()
    edit_json(folder, lambda c: c["annotations"].clear(), "val2017")
    edit_json(folder, lambda c: c["annotations"].clear())
    source = load(folder, "detection")
    assert source.train.labels.tolist() == [[-1]] * 3
    assert source.train.crowd is None


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of pycocotools
def test_masks_match_pycocotools_with_small_objects_on_top(folder):
    source = load(folder, "segmentation")
    assert source.classes == ("background", "cat", "dog")
    reference = COCO(folder / "annotations" / "instances_train2017.json")
    dog, cat, crowd = (reference.annToMask(reference.anns[i]).astype(bool) for i in (1, 2, 3))
    assert (crowd & dog).any()
    assert (cat & dog).any()
    expected = np.select([cat, dog, crowd], [1, 2, 255], 0)
    assert (source.train.labels[0] == expected).all()
    assert not source.train.labels[1].any()
    assert (source.train.labels[2] == np.select([disc(0, 0, 3) > 0], [1], 2)).all()


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(1, 70), st.floats(0, 1), st.integers(0, 10**6))
def test_run_lengths_are_decoded_as_in_pycocotools(height, width, share, seed):
    mask = np.asfortranarray(np.random.default_rng(seed).random((height, width)) < share).astype(np.uint8)
    assert (_decode_region(compressed(mask), (height, width), "") == mask).all()


@pytest.mark.parametrize(
    "code", ["", "0", "zz", "\x00", "P1 ", "o" * 40, compressed(disc(5, 5, 3))["counts"][:-2], "é"]
)
def test_run_lengths_of_the_wrong_total_are_rejected(code):
    with pytest.raises(UserError, match="do not add up"):
        _decode_region({"size": [H, W], "counts": code}, (H, W), "annotation 1")


BAD = {
    "nan": (lambda a: a.update(bbox=[1, float("nan"), 2, 2]), "detection", "has no bbox of four finite numbers"),
    "three numbers": (lambda a: a.update(bbox=[1, 2, 2]), "detection", "has no bbox of four finite numbers"),
    "no box": (lambda a: a.pop("bbox"), "detection", "has no bbox of four finite numbers"),
    "category": (lambda a: a.update(category_id=8), "detection", "has the unknown category 8"),
    "list as category": (lambda a: a.update(category_id=[8]), "segmentation", "has the unknown category"),
    "no segmentation": (lambda a: a.pop("segmentation"), "segmentation", "has no segmentation"),
    "two corners": (lambda a: a.update(segmentation=[[1, 2, 3, 4]]), "segmentation", "three or more corners"),
    "odd": (lambda a: a.update(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "segmentation", "three or more corners"),
    "infinite": (lambda a: a.update(segmentation=[[1, 2, 3, 4, 5, float("inf")]]), "segmentation", "finite"),
    "far": (lambda a: a.update(segmentation=[[1, 2, 3, 4, 5, 1e9]]), "segmentation", "far outside"),
    "text": (lambda a: a.update(segmentation="P"), "segmentation", "has no segmentation"),
    "size": (lambda a: a.update(segmentation={"size": [W, H], "counts": [H * W]}), "segmentation", "another size"),
    "sum": (lambda a: a.update(segmentation={"size": [H, W], "counts": [7]}), "segmentation", "do not add up"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_annotation_raises_or_image_is_skipped(folder, name):
    damage, task, message = BAD[name]
    edit_json(folder, lambda c: damage(c["annotations"][0]))
    with pytest.raises(UserError, match=f"instances_train2017.json: annotation 1 of 1.png .*{message}"):
        load(folder, task)
    source = load(folder, task, "skip")
    assert [s.rsplit("/", 2)[1:] for s in source.skipped] == [["train2017", "1.png"]]
    assert source.train.images[:, 0, 0, 0].tolist() == [2, 3]


def test_missing_images_and_images_of_another_size(folder):
    (folder / "val2017" / "2.png").unlink()
    with pytest.raises(UserError, match=r"There is no image .*val2017/2\.png"):
        load(folder, "detection")
    assert len(load(folder, "detection", "skip").test) == 2
    edit_json(folder, lambda c: c["images"][0].update(width=99))
    with pytest.raises(UserError, match=r"train2017/1\.png is 16×12 pixels, but .*json has 99×12"):
        load(folder, "detection")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c.pop("images"), "not COCO JSON: 'images' is missing"),
        (lambda c: c["images"][0].pop("file_name"), "'file_name' is missing"),
        (lambda c: c["annotations"][0].pop("image_id"), "'image_id' is missing"),
        (lambda c: c.update(annotations=3), "not COCO JSON"),
        (lambda c: c.update(images=[3]), "not COCO JSON"),
        (lambda c: c["images"][0].update(id=[3]), "not COCO JSON"),
        (lambda c: c["annotations"][0].update(image_id=4), "annotations of the image 4, which it does not list"),
        (lambda c: c["images"][0].update(id=20), "ids of its categories and images must be unique"),
        (lambda c: c["categories"][0].update(name="wolf"), "other categories than the file for train"),
    ],
)
@pytest.mark.parametrize("on_error", ["error", "skip"])
def test_invalid_json_raises_even_with_skip(folder, damage, message, on_error):
    edit_json(folder, damage, "val2017")
    with pytest.raises(UserError, match=message):
        load(folder, "detection", on_error)


def test_truncated_json_and_missing_files(folder):
    path = folder / "annotations" / "instances_val2017.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(UserError, match=r"instances_val2017\.json is not COCO JSON: .*line 1"):
        load(folder, "detection", "skip")
    path.unlink()
    with pytest.raises(UserError, match=r"has 0 files instances_val\*\.json: set data\.options\.test"):
        load(folder, "detection")
    with pytest.raises(UserError, match=r"x\.json cannot be read"):
        load(folder, "detection", test="x.json")
    train = "annotations/instances_train2017.json"
    with pytest.raises(UserError, match=r"There is no folder .*/q: set data\.options\.test_images"):
        load(folder, "detection", test=train, test_images="q")
    source = load(folder, "detection", test=train, valid=train, valid_images="val2017")
    assert len(source.valid) == len(source.test) == 3
