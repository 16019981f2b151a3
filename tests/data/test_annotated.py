"""What all readers of masks and boxes share: decoding, sizes, channels, and what becomes of bad files."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tljax.config import DataConfig
from tljax.data.sources import registry
from tljax.data.sources.images import read_image, read_mask
from tljax.data.sources.records import objects
from tljax.errors import UserError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def test_plain_grey_and_colour_pictures_are_read_as_they_are(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    Image.fromarray(COLOUR).save(tmp_path / "b.png")
    assert (read_image(tmp_path / "a.png")[..., 0] == GREY).all()
    assert (read_image(tmp_path / "b.png") == COLOUR).all()


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    deep = np.array([[0, 257, 32896, 65535, 300]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[..., 0].tolist() == [[0, 1, 128, 255, 1]]
    Image.fromarray(deep).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif")[..., 0].tolist() == [[0, 1, 128, 255, 1]]
    (tmp_path / "a.pgm").write_bytes(b"P5 5 1 65535\n" + deep.astype(">u2").tobytes())
    assert read_image(tmp_path / "a.pgm")[..., 0].tolist() == [[0, 1, 128, 255, 1]]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_is_laid_over_white(tmp_path, mode):
    value = (200, 100, 0) if mode == "RGBA" else (200,)
    picture = Image.new(mode, (3, 1), (*value, 255))
    picture.putpixel((1, 0), (*value, 0))
    picture.putpixel((2, 0), (*value, 51))  # a fifth
    picture.save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert read.shape == (1, 3, len(value))
    expected = [value, (255,) * len(value), tuple(round(0.2 * v + 0.8 * 255) for v in value)]
    assert np.abs(read[0].astype(int) - expected).max() <= 1


def test_palettes_are_looked_up_in_pictures_and_are_indices_in_masks(tmp_path):
    picture = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    picture.save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").tolist() == [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]]
    assert read_mask(tmp_path / "a.png").tolist() == [[0, 1, 2]]
    picture.info["transparency"] = 1
    picture.save(tmp_path / "b.png", transparency=1)
    assert read_image(tmp_path / "b.png").tolist() == [[[10, 20, 30], [255, 255, 255], [70, 80, 90]]]
    assert read_mask(tmp_path / "b.png").tolist() == [[0, 1, 2]]


def test_cmyk_orientation_and_animation(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    red = read_image(tmp_path / "a.jpg")[0, 0]
    assert red[0] > 240
    assert red[1:].max() < 15
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(COLOUR).save(tmp_path / "b.png", exif=exif)
    assert (read_image(tmp_path / "b.png") == COLOUR).all()
    frames = [Image.new("L", (4, 4), v) for v in (10, 200)]
    frames[0].save(tmp_path / "c.gif", save_all=True, append_images=frames[1:])
    assert (read_image(tmp_path / "c.gif") == 10).all()


@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "tif"])
def test_truncated_and_missing_pictures_are_named(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
        buffer, {"jpg": "jpeg", "tif": "tiff"}.get(ending, ending)
    )
    for share in (0.5, 0.02):
        path.write_bytes(buffer.getvalue()[: int(share * len(buffer.getvalue()))])
        with pytest.raises(UserError, match=rf"a\.{ending} cannot be read as a picture: .*[^.]\.$"):
            read_image(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read"):
        read_image(path)
    path.unlink()
    with pytest.raises(UserError, match=rf"There is no picture .*a\.{ending}"):
        read_image(path)


def test_floats_and_masks_of_many_channels_or_values_are_refused(tmp_path):
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match="floating-point"):
        read_image(tmp_path / "a.tif")
    Image.fromarray(COLOUR).save(tmp_path / "b.png")
    with pytest.raises(UserError, match=r"b\.png is no mask: it has channels RGB"):
        read_mask(tmp_path / "b.png")
    Image.fromarray(np.array([[3, 256]], np.uint16)).save(tmp_path / "c.png")
    with pytest.raises(UserError, match=r"c\.png is no mask: it has values 3\.\.256"):
        read_mask(tmp_path / "c.png")
    Image.fromarray(GREY).save(tmp_path / "d.jpg")
    with pytest.raises(UserError, match="JPEG changes"):
        read_mask(tmp_path / "d.jpg")


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(*[st.integers(-5, 25)] * 4), max_size=8), st.data())
def test_boxes_are_cut_at_the_edges_and_those_without_area_left_out(boxes, data):
    crowd = data.draw(st.lists(st.booleans(), min_size=len(boxes), max_size=len(boxes)))
    made = objects(np.zeros((10, 20, 1), np.uint8), boxes, range(len(boxes)), crowd)
    expected = []
    for k, (y0, x0, y1, x1) in enumerate(boxes):
        pixels = {(y, x) for y in range(max(y0, 0), min(y1, 10)) for x in range(max(x0, 0), min(x1, 20))}
        if pixels:
            ys, xs = zip(*pixels, strict=True)
            expected.append(([min(ys), min(xs), max(ys) + 1, max(xs) + 1], k, crowd[k]))
    assert list(zip(made.boxes.tolist(), made.labels, made.crowd, strict=True)) == expected


@pytest.fixture
def folder(tmp_path):
    """Grey and coloured pictures of one size with masks of three classes."""
    for split, count in (("train", 3), ("test", 2)):
        for kind in ("images", "masks"):
            (tmp_path / split / kind).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(COLOUR if i == 1 else GREY).save(tmp_path / split / "images" / f"{i}.png")
            mask = np.full((5, 7), i, np.uint8)
            mask[0, 0], mask[1, 1] = 255, 2
            Image.fromarray(mask).save(tmp_path / split / "masks" / f"{i}.png")
    return tmp_path


def masks(folder, on_error="error", image_size=None, **options):
    config = DataConfig(name="masks", path=str(folder), image_size=image_size, options=options, on_error=on_error)
    return registry.load_source(config, "segmentation")


def test_folders_of_masks(folder):
    source = masks(folder, classes=("sky", "sea", "land"))
    assert source.classes == ("sky", "sea", "land")
    assert source.valid is None
    assert source.train.images.shape == (3, 5, 7, 3)
    assert (source.train.images[0] == GREY[..., None]).all()  # grey fills three channels beside colour
    assert (source.train.images[1] == COLOUR).all()
    for i in range(3):
        assert source.train.labels[i, 0].tolist() == [255, *[i] * 6]
        assert source.train.labels[i, 1].tolist() == [i, 2, *[i] * 5]
    assert masks(folder).classes == ("0", "1", "2")


def test_masks_of_0_and_255_are_of_two_classes(folder):
    def write(values):
        for split, count in (("train", 3), ("test", 2)):
            for i in range(count):
                mask = np.zeros((5, 7), np.uint8)
                mask[i], mask[4, 6] = 255, values
                Image.fromarray(mask).save(folder / split / "masks" / f"{i}.png")

    write(255)
    for options in ({}, {"classes": ("nothing", "thing")}):
        source = masks(folder, **options)
        assert source.classes == options.get("classes", ("0", "1"))
        assert source.train.labels[1].sum(1).tolist() == [0, 7, 0, 0, 1]
    assert masks(folder, classes=("a", "b", "c")).train.labels[1].max() == 255
    write(1)  # a 1 anywhere says what 255 is
    assert masks(folder, classes=("a", "b")).train.labels[1, 1].tolist() == [255] * 7


def test_pictures_come_to_one_size_and_masks_keep_their_values(folder):
    Image.fromarray(COLOUR).resize((9, 11)).save(folder / "train" / "images" / "0.png")
    Image.fromarray(np.full((11, 9), 1, np.uint8)).save(folder / "train" / "masks" / "0.png")
    with pytest.raises(
        UserError, match=r"train/images/1\.png is not of the size of those before it: set data\.image_size"
    ):
        masks(folder)
    source = masks(folder, image_size=20)
    assert source.train.images.shape == (3, 20, 20, 3)
    assert set(np.unique(source.train.labels)) == {1, 2, 255}
    # The nearest pixel of a place that is twice, four times as wide: row 0 and column 0 of 5×7.
    assert (source.train.labels[1][:4, :2] == 255).all()
    assert (source.train.labels[1] == 255).sum() in (4 * 2, 4 * 3)


BAD = {
    "a mask of another size": (
        lambda f: Image.fromarray(np.zeros((5, 8), np.uint8)).save(f / "masks/1.png"),
        r"masks/1\.png is 8×5 pixels, its picture 7×5",
    ),
    "a value beyond the classes": (
        lambda f: Image.fromarray(np.full((5, 7), 3, np.uint8)).save(f / "masks/1.png"),
        r"masks/1\.png has the value 3, but the classes are 0\.\.2",
    ),
    "no mask": (lambda f: (f / "masks/1.png").unlink(), r"There is no .*masks/1\.\*"),
    "no picture": (lambda f: (f / "images/1.png").unlink(), r"There is no .*images/1\.\*"),
    "a truncated picture": (
        lambda f: (f / "images/1.png").write_bytes((f / "images/1.png").read_bytes()[:-40]),
        r"images/1\.png cannot be read",
    ),
    "a truncated mask": (
        lambda f: (f / "masks/1.png").write_bytes((f / "masks/1.png").read_bytes()[:40]),
        r"masks/1\.png cannot be read",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_ends_it_or_is_left_out_by_name(folder, name):
    damage, words = BAD[name]
    damage(folder / "train")
    with pytest.raises(UserError, match=words):
        masks(folder, classes=("a", "b", "c"))
    source = masks(folder, "skip", classes=("a", "b", "c"))
    assert [s.rsplit("/", 1)[1] for s in source.skipped] == ["1.png"]
    assert len(source.train) == 2
    assert (source.train.labels[1] == 2).sum() == 34


def test_all_files_bad_and_no_files_are_errors_either_way(folder):
    for file in (folder / "test" / "masks").iterdir():
        file.write_bytes(b"")
    with pytest.raises(UserError, match=r"None of the 2 pictures for test can be used; of the first: .*0\.png"):
        masks(folder, "skip")
    for kind in ("masks", "images"):
        for file in (folder / "test" / kind).iterdir():
            file.unlink()
    with pytest.raises(UserError, match="no pictures for test"):
        masks(folder)
    (folder / "test" / "masks").rmdir()
    with pytest.raises(UserError, match=r"There is no folder .*test/masks"):
        masks(folder)


def test_a_folder_valid_is_the_validation_split(folder):
    (folder / "test").rename(folder / "valid")
    (folder / "test").symlink_to(folder / "valid")
    source = masks(folder)
    assert (source.valid.labels == source.test.labels).all()


@pytest.mark.parametrize(
    ("config", "task", "words"),
    [
        ({"name": "digits"}, "detection", '"digits" has nothing for the task detection; what has: scenes, '),
        ({"name": "yolo"}, "segmentation", "what has: scenes, coco, voc, masks, tfds:NAME"),
        ({"name": "scenes"}, "classification", "what has: digits, idx, fashion-mnist, tfds:NAME"),
        ({"name": "cocoo"}, "detection", 'no data.name "cocoo"; did you mean "coco"'),
        ({"name": "digits", "options": {"train": 3}}, "classification", 'data.options: digits has no "train"'),
        ({"name": "masks", "path": ".", "options": {"class": ()}}, "segmentation", 'did you mean "classes"'),
        ({"name": "masks"}, "segmentation", "needs data.path"),
        ({"name": "masks", "path": "nowhere"}, "segmentation", "data.path=nowhere is not a folder"),
    ],
)
def test_sources_that_do_not_fit_are_one_sentence(config, task, words):
    with pytest.raises(UserError, match=words):
        registry.load_source(DataConfig(**config), task)
