"""Images with masks or boxes: clipping of boxes, sizes, channels and bad files; and folders of masks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tljax.config import DataConfig
from tljax.data.sources import registry
from tljax.data.sources.records import make_objects
from tljax.errors import UserError

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
COLOR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(*[st.integers(-5, 25)] * 4), max_size=8), st.data())
def test_make_objects_clips_boxes_and_drops_empty_ones(boxes, data):
    crowd = data.draw(st.lists(st.booleans(), min_size=len(boxes), max_size=len(boxes)))
    objects = make_objects(np.zeros((10, 20, 1), np.uint8), boxes, range(len(boxes)), crowd)
    expected = []
    for k, (y0, x0, y1, x1) in enumerate(boxes):
        pixels = {(y, x) for y in range(max(y0, 0), min(y1, 10)) for x in range(max(x0, 0), min(x1, 20))}
        if pixels:
            ys, xs = zip(*pixels, strict=True)
            expected.append(([min(ys), min(xs), max(ys) + 1, max(xs) + 1], k, crowd[k]))
    assert list(zip(objects.boxes.tolist(), objects.labels, objects.crowd, strict=True)) == expected


@pytest.fixture
def folder(tmp_path):
    """Grayscale and color images of one size with masks of three classes."""
    for split, count in (("train", 3), ("test", 2)):
        for kind in ("images", "masks"):
            (tmp_path / split / kind).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(COLOR if i == 1 else GRAY).save(tmp_path / split / "images" / f"{i}.png")
            mask = np.full((5, 7), i, np.uint8)
            mask[0, 0], mask[1, 1] = 255, 2
            Image.fromarray(mask).save(tmp_path / split / "masks" / f"{i}.png")
    return tmp_path


def load(folder, on_error="error", image_size=None, **options):
    config = DataConfig(name="masks", path=str(folder), image_size=image_size, options=options, on_error=on_error)
    return registry.load_source(config, "segmentation")


def test_mask_folders_load_images_masks_and_classes(folder):
    source = load(folder, classes=("sky", "sea", "land"))
    assert source.classes == ("sky", "sea", "land")
    assert source.valid is None
    assert source.train.images.shape == (3, 5, 7, 3)
    assert (source.train.images[0] == GRAY[..., None]).all()  # copied to three channels
    assert (source.train.images[1] == COLOR).all()
    for i in range(3):
        assert source.train.labels[i, 0].tolist() == [255, *[i] * 6]
        assert source.train.labels[i, 1].tolist() == [i, 2, *[i] * 5]
    assert load(folder).classes == ("0", "1", "2")


def test_mask_folders_with_values_0_and_255_are_binary(folder):
    def write(last_pixel):
        for split, count in (("train", 3), ("test", 2)):
            for i in range(count):
                mask = np.zeros((5, 7), np.uint8)
                mask[i], mask[4, 6] = 255, last_pixel
                Image.fromarray(mask).save(folder / split / "masks" / f"{i}.png")

    write(255)
    for options in ({}, {"classes": ("background", "object")}):
        source = load(folder, **options)
        assert source.classes == options.get("classes", ("0", "1"))
        assert source.train.labels[1].sum(1).tolist() == [0, 7, 0, 0, 1]
    assert load(folder, classes=("a", "b", "c")).train.labels[1].max() == 255
    write(1)  # with a value 1 anywhere, 255 is ignored
    assert load(folder, classes=("a", "b")).train.labels[1, 1].tolist() == [255] * 7


def test_images_are_resized_and_masks_keep_their_values(folder):
    Image.fromarray(COLOR).resize((9, 11)).save(folder / "train" / "images" / "0.png")
    Image.fromarray(np.full((11, 9), 1, np.uint8)).save(folder / "train" / "masks" / "0.png")
    with pytest.raises(
        UserError, match=r"train/images/1\.png differs in size from the images before it: set data\.image_size"
    ):
        load(folder)
    source = load(folder, image_size=20)
    assert source.train.images.shape == (3, 20, 20, 3)
    assert set(np.unique(source.train.labels)) == {1, 2, 255}
    # Nearest neighbor: the pixel in row 0 and column 0 of 5×7 covers 4×2 or 4×3 pixels.
    assert (source.train.labels[1][:4, :2] == 255).all()
    assert (source.train.labels[1] == 255).sum() in (4 * 2, 4 * 3)


BAD = {
    "mask of another size": (
        lambda f: Image.fromarray(np.zeros((5, 8), np.uint8)).save(f / "masks/1.png"),
        r"masks/1\.png is 8×5 pixels, its image 7×5",
    ),
    "value beyond the classes": (
        lambda f: Image.fromarray(np.full((5, 7), 3, np.uint8)).save(f / "masks/1.png"),
        r"masks/1\.png has the value 3, but the classes are 0\.\.2",
    ),
    "no mask": (lambda f: (f / "masks/1.png").unlink(), r"There is no .*masks/1\.\*"),
    "no image": (lambda f: (f / "images/1.png").unlink(), r"There is no .*images/1\.\*"),
    "truncated image": (
        lambda f: (f / "images/1.png").write_bytes((f / "images/1.png").read_bytes()[:-40]),
        r"images/1\.png cannot be read",
    ),
    "truncated mask": (
        lambda f: (f / "masks/1.png").write_bytes((f / "masks/1.png").read_bytes()[:40]),
        r"masks/1\.png cannot be read",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_raises_or_is_skipped(folder, name):
    damage, message = BAD[name]
    damage(folder / "train")
    with pytest.raises(UserError, match=message):
        load(folder, classes=("a", "b", "c"))
    source = load(folder, "skip", classes=("a", "b", "c"))
    assert [s.rsplit("/", 1)[1] for s in source.skipped] == ["1.png"]
    assert len(source.train) == 2
    assert (source.train.labels[1] == 2).sum() == 34


def test_splits_without_usable_files_raise(folder):
    for file in (folder / "test" / "masks").iterdir():
        file.write_bytes(b"")
    with pytest.raises(UserError, match=r"None of the 2 images for test can be used; first error: .*0\.png"):
        load(folder, "skip")
    for kind in ("masks", "images"):
        for file in (folder / "test" / kind).iterdir():
            file.unlink()
    with pytest.raises(UserError, match="no images for test"):
        load(folder)
    (folder / "test" / "masks").rmdir()
    with pytest.raises(UserError, match=r"There is no folder .*test/masks"):
        load(folder)


def test_mask_folders_use_valid_as_validation_split(folder):
    (folder / "test").rename(folder / "valid")
    (folder / "test").symlink_to(folder / "valid")
    source = load(folder)
    assert (source.valid.labels == source.test.labels).all()
