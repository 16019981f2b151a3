"""Folders of images of any size and mode: decoding, splits, storage and errors."""

import math
import os
import random
import unicodedata
import zlib

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tljax import data
from tljax.config import DataConfig
from tljax.data import LabeledFiles, image_store
from tljax.data.dataset import ImageRows
from tljax.data.image_store import load_images
from tljax.data.labeled_files import assign_splits
from tljax.data.sources import image_folders
from tljax.data.sources.images import ImageFormat, read_image
from tljax.errors import UserError
from tljax.weights import Preprocess

RNG = np.random.default_rng(0)


def smooth_image(height, width, channels=3, seed=0):
    """Return an image of smooth gradients, for which filters differ little."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    rng = np.random.default_rng(seed)
    phases = rng.uniform(0, 6, (2, channels))
    waves = 127.5 + 127.5 * np.sin(4 * y[..., None] + phases[0]) * np.cos(3 * x[..., None] + phases[1])
    return waves.astype(np.uint8)


def save(path, image=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = smooth_image(12, 10, seed=zlib.crc32(path.name.encode())) if image is None else image
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    image.save(path, **options)
    return path


def make_folder(root, counts, splits=("",)):
    """Write PATH/[SPLIT/]CLASS/NUMBER.png with different pixels each."""
    rng = np.random.default_rng(1)
    for split in splits:
        for name, count in counts.items():
            for i in range(count):
                pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
                save(root / split / name / f"{i}.png", pixels)
    return root


def load(root, **fields):
    return data.load(DataConfig(name="folder", path=str(root), **({"image_size": 8} | fields)), 0)


# Decoding.


@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(20, 20), (30, 20), (17, 41), (3, 5)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_fit_matches_pillow_operations(resize, size, interpolation):
    image = Image.fromarray(RNG.integers(0, 256, (*size, 3), dtype=np.uint8))
    method = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    expected = {
        "crop": lambda: ImageOps.fit(image, (10, 10), method, centering=(0.5, 0.5)),
        "pad": lambda: ImageOps.pad(image, (10, 10), method, color="#102030"),
        "stretch": lambda: image.resize((10, 10), method),
    }[resize]()
    fitted = ImageFormat(10, resize, interpolation, "#102030").fit(np.asarray(image))
    assert np.abs(fitted.astype(int) - np.asarray(expected)).max() <= 1


def test_padding_of_gray_images_keeps_or_gets_color():
    gray = np.full((4, 8, 1), 7, np.uint8)
    assert ImageFormat(8, "pad", background="black").fit(gray)[..., 0].tolist() == [
        *([[0] * 8] * 2),
        *([[7] * 8] * 4),
        *([[0] * 8] * 2),
    ]
    colored = ImageFormat(8, "pad", background="#ff0000").fit(gray)
    assert colored[0, 0].tolist() == [255, 0, 0]
    assert colored[4, 4].tolist() == [7, 7, 7]


MODES = {
    "1": lambda: Image.new("1", (9, 6), 1),
    "L": lambda: Image.new("L", (9, 6), 100),
    "LA": lambda: Image.new("LA", (9, 6), (100, 255)),
    "P": lambda: Image.new("RGB", (9, 6), (200, 100, 50)).quantize(4),
    "RGB": lambda: Image.new("RGB", (9, 6), (200, 100, 50)),
    "RGBA": lambda: Image.new("RGBA", (9, 6), (200, 100, 50, 255)),
    "I;16": lambda: Image.fromarray(np.full((6, 9), 100 * 257, np.uint16)),
    "CMYK": lambda: Image.new("CMYK", (9, 6), (55, 155, 205, 0)),
}
EXPECTED = {"1": [255], "L": [100], "LA": [100], "I;16": [100]}


@pytest.mark.parametrize("mode", list(MODES))
def test_every_mode_becomes_uint8(mode, tmp_path):
    ending = {"CMYK": "tif"}.get(mode, "png")
    path = save(tmp_path / f"a.{ending}", MODES[mode]())
    image_format = ImageFormat(6)
    pixels = image_format.read(path)
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(pixels[3, 3], EXPECTED.get(mode, [200, 100, 50]), atol=2)
    assert image_format.is_gray(path) == (pixels.shape[-1] == 1)


def test_cmyk_jpeg_keeps_its_colors(tmp_path):
    path = save(tmp_path / "a.jpg", Image.new("CMYK", (16, 16), (0, 255, 255, 0)))
    red = ImageFormat(8).read(path)[4, 4]
    assert red[0] > 240
    assert red[1:].max() < 15


@pytest.mark.parametrize(
    ("background", "expected"), [("white", (255, 255, 255)), ("black", (0, 0, 0)), ("#0a141e", (10, 20, 30))]
)
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_have_the_background(mode, background, expected, tmp_path):
    if mode == "P":
        image = Image.new("P", (8, 8), 0)
        image.putpalette([9, 9, 9, 50, 60, 70])
        save(tmp_path / "a.png", image, transparency=0)
    else:
        save(tmp_path / "a.png", Image.new(mode, (8, 8), (9,) * (len(mode) - 1) + (0,)))
    image_format = ImageFormat(8, background=background)
    pixels = image_format.read(tmp_path / "a.png")
    assert (pixels == np.array(expected, np.uint8)[: pixels.shape[-1]]).all()
    assert pixels.shape[-1] == (1 if image_format.is_gray(tmp_path / "a.png") else 3)
    # A gray image needs colors on a colored background.
    assert pixels.shape[-1] == (1 if mode == "LA" and background[0] != "#" else 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_exif_orientation_is_applied(orientation, ending, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"jpg": {"quality": 95}, "webp": {"lossless": True}}.get(ending, {})
    path = save(tmp_path / f"a.{ending}", smooth_image(24, 36), exif=exif, **options)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    shown = read_image(path, oriented=True)
    assert shown.shape == expected.shape == (*((24, 36) if orientation < 5 else (36, 24)), 3)
    np.testing.assert_array_equal(shown, expected)
    fitted = ImageFormat(12, "pad").read(path)
    error = np.abs(fitted.astype(int) - ImageFormat(12, "pad").fit(expected)).mean()
    assert error < 4 if ending == "jpg" else error == 0  # a JPEG is decoded at a reduced size


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("channels", [1, 3])
def test_both_jpeg_decoders_agree(subsampling, channels, tmp_path):
    options = {} if channels == 1 else {"subsampling": subsampling}
    path = save(tmp_path / "a.jpg", smooth_image(70, 91, channels), quality=90, **options)
    with Image.open(path) as image:
        expected = np.asarray(image).reshape(70, 91, channels)
    space = "GRAY" if channels == 1 else "RGB"
    np.testing.assert_allclose(simplejpeg.decode_jpeg(path.read_bytes(), space).astype(int), expected, atol=2)
    large = ImageFormat(91, "pad").read(path)  # at full scale
    np.testing.assert_allclose(large.astype(int), ImageFormat(91, "pad").fit(expected), atol=2)


@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
def test_large_jpeg_is_decoded_at_reduced_size(resize, tmp_path, monkeypatch):
    pixels = smooth_image(400, 600)
    path = save(tmp_path / "a.jpg", pixels, quality=95)
    sizes = []
    decode = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *a, **k: sizes.append((r := decode(*a, **k)).shape) or r)
    image_format = ImageFormat(40, resize)
    fitted = image_format.read(path)
    assert sizes[0] == {"crop": (50, 75, 3), "pad": (50, 75, 3), "stretch": (50, 75, 3)}[resize]
    assert np.abs(fitted.astype(int) - image_format.fit(pixels)).mean() < 2


def test_progressive_and_broken_jpegs_are_left_to_pillow(tmp_path, monkeypatch):
    image = smooth_image(64, 64)
    save(tmp_path / "p.jpg", image, progressive=True, quality=95)
    path = save(tmp_path / "b.jpg", image, quality=95)
    calls = []
    decode = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *a, **k: calls.append(1) or decode(*a, **k))
    assert np.abs(ImageFormat(64).read(tmp_path / "p.jpg").astype(int) - image).mean() < 2
    assert not calls
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"b\.jpg cannot be read as an image: .*truncated"):
        ImageFormat(64).read(path)
    assert calls == [1]


# Folders.


def test_folder_classes_are_sorted_and_read_with_their_folders(tmp_path):
    make_folder(tmp_path, {"b": 3, "a": 3})
    save(tmp_path / "a" / "deeper" / "still" / "x.JPG", format="jpeg")
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "b" / ".hidden.png").write_bytes(b"")
    (tmp_path / ".git").mkdir()
    save(tmp_path / "loose.png")
    files = image_folders.load(DataConfig(name="folder", path=str(tmp_path)), "classification")
    assert files.classes == ("a", "b")
    assert files.names == ("a/0.png", "a/1.png", "a/2.png", "a/deeper/still/x.JPG", "b/0.png", "b/1.png", "b/2.png")
    assert files.labels.tolist() == [0] * 4 + [1] * 3
    assert files.ignored == (".git/", "a/notes.txt", "b/.hidden.png", "loose.png")
    described = load(tmp_path, image_size=4).describe()
    assert described["ignored"] == {"count": 4, "files": list(files.ignored)}
    assert described["resize"] == "crop"


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Train", "validation", "TEST"), ("train", "valid", "test")]
)
def test_folder_of_splits_keeps_them(names, tmp_path):
    for name, count in zip(names, (4, 2, 3), strict=True):
        make_folder(tmp_path / name, {"a": count, "b": count})
    loaded = load(tmp_path)
    assert [len(loaded.train), len(loaded.valid), loaded.test.size] == [8, 4, 6]
    with pytest.raises(UserError, match=r"test_fraction has no effect: the source has a test split"):
        load(tmp_path, test_fraction=0.5)


def test_folder_without_some_splits_holds_them_out(tmp_path):
    make_folder(tmp_path / "train", {"a": 10, "b": 20})
    make_folder(tmp_path / "test", {"a": 2, "b": 2})
    loaded = load(tmp_path, valid_fraction=0.3)
    assert np.bincount(loaded.valid.labels).tolist() == [3, 6]
    assert loaded.test.size == 4
    assert len(loaded.train) == 21


def test_class_named_train_among_others_is_a_class(tmp_path):
    make_folder(tmp_path, {"bus": 4, "train": 4})
    assert load(tmp_path).classes == ("bus", "train")


def test_linked_folders_are_followed_and_cycles_end(tmp_path):
    make_folder(tmp_path / "data", {"a": 3})
    make_folder(tmp_path / "elsewhere", {"b": 4})
    (tmp_path / "data" / "b").symlink_to(tmp_path / "elsewhere" / "b")
    (tmp_path / "data" / "a" / "loop").symlink_to(tmp_path / "data" / "a")
    files = image_folders.load(DataConfig(name="folder", path=str(tmp_path / "data")), "classification")
    assert np.bincount(files.labels).tolist() == [3, 4]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "has no class folders"),
        (lambda root: make_folder(root, {"a": 2}), "has one class folder, a;"),
        (lambda root: make_folder(root / "images", {"a": 2, "b": 2}), "did you mean data.path="),
        (lambda root: make_folder(root, {"a": 2, "b": 0}) and (root / "b").mkdir(), "b has no images, no files"),
        (lambda root: make_folder(root, {"a": 5, "b": 1}), 'Class "b" has no validation images'),
        (
            lambda root: make_folder(root, {"train/a": 2, "train/b": 2, "test/a": 1, "extra/a": 1}),
            "splits and also extra",
        ),
        (lambda root: make_folder(root, {"train/a": 2, "val/a": 2, "valid/a": 1}), "two folders for one split"),
        (
            lambda root: make_folder(root, {"train/a": 2, "train/b": 2, "valid/a": 1, "test/a": 1}),
            '"b" has no validation',
        ),
        (
            lambda root: make_folder(root, {"train/a": 2, "valid/b": 2, "valid/a": 1, "test/a": 1}),
            '"b" has no training',
        ),
    ],
)
def test_folder_errors_name_the_problem(make, message, tmp_path):
    make(tmp_path)
    with pytest.raises(UserError, match=message):
        load(tmp_path)


def test_class_folder_of_other_files_is_named(tmp_path):
    make_folder(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "x.heic").write_bytes(b"x")
    with pytest.raises(UserError, match=r"c has no images, only files of the types \.heic"):
        load(tmp_path)


def test_bad_files_stop_or_are_skipped_and_named(tmp_path):
    make_folder(tmp_path, {"a": 6, "b": 6})
    (tmp_path / "a" / "broken.png").write_bytes((tmp_path / "a" / "0.png").read_bytes()[:40])
    (tmp_path / "b" / "empty.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"a/broken\.png cannot be read as an image"):
        load(tmp_path)
    loaded = load(tmp_path, on_error="skip")
    assert loaded.describe()["skipped"] == ["a/broken.png", "b/empty.jpg"]
    assert len(loaded.train) + len(loaded.valid) + loaded.test.size == 12


def test_folder_of_broken_files_is_an_error(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"None of the 2 images can be used; first error: .*x\.png"):
        load(tmp_path, on_error="skip")


# Sizes.


def test_stored_side_is_input_over_crop_rounded_up(tmp_path):
    make_folder(tmp_path, {"a": 3, "b": 3})
    weights = Preprocess("p", 1.0, (0, 0, 0), size=128, interpolation="bicubic", crop=0.875)
    config = DataConfig(name="folder", path=str(tmp_path))
    for fields, side in (
        ({}, math.ceil(128 / 0.875)),
        ({"image_size": 8}, 10),
        ({"resize": "pad"}, 128),
        ({"resize": "stretch"}, 128),
        ({"store_size": 200}, 200),
    ):
        loaded = data.load(DataConfig(**(vars(config) | fields)), 0, network_input=weights)
        assert loaded.train.images.shape[1:] == (side, side, 3)
        assert loaded.resize == fields.get("resize", "crop")
    with pytest.raises(UserError, match=r"data\.store_size=100 is smaller than the network input of 128"):
        data.load(DataConfig(**(vars(config) | {"store_size": 100})), 0, network_input=weights)
    with pytest.raises(UserError, match=r"needs data\.image_size"):
        load(tmp_path, image_size=None)


def test_other_sources_are_resized_only_if_asked():
    plain = data.load(DataConfig(), 0)
    assert plain.train.images.shape[1:] == (8, 8, 1)
    assert plain.resize is None
    padded = data.load(DataConfig(resize="pad", image_size=12), 0)
    assert padded.train.images.shape[1:] == (12, 12, 1)
    assert (padded.train.labels == plain.train.labels).all()
    for fields, message in (
        ({"store_size": 9}, "data.store_size has no effect"),
        ({"background": "black"}, "data.background has no effect"),
        ({"test_fraction": 0.1}, "data.test_fraction has no effect"),
    ):
        with pytest.raises(UserError, match=message):
            data.load(DataConfig(**fields), 0)
    with pytest.raises(UserError, match=r"data\.resize='pad' is for classification"):
        data.load(DataConfig(name="scenes", resize="pad", options={"train": 4, "valid": 2, "test": 2}), 0, "detection")


# Splits.


def make_files(counts, groups=None, order=None):
    names = [f"{label}/{i}.png" for label, count in enumerate(counts) for i in range(count)]
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    files = LabeledFiles(tuple(names), (), labels, tuple(map(str, range(len(counts)))), None, groups)
    return (
        files
        if order is None
        else LabeledFiles(
            tuple(names[i] for i in order),
            (),
            labels[order],
            files.classes,
            None,
            groups and tuple(groups[i] for i in order),
        )
    )


@given(st.lists(st.integers(2, 40), min_size=2, max_size=4), st.floats(0.05, 0.6), st.floats(0.05, 0.6))
def test_every_class_is_divided_by_the_fractions(counts, test, valid):
    files = make_files(counts)
    assigned = assign_splits(files, DataConfig(test_fraction=test, valid_fraction=valid))
    for label, count in enumerate(counts):
        sizes = np.bincount(assigned[files.labels == label], minlength=3)
        assert sizes[:2].min() >= 1
        assert sizes[2] == min(round(test * count), count - 2)
        rest = count - sizes[2]
        assert sizes[1] == min(max(1, round(valid * rest)), rest - 1)


@given(st.lists(st.integers(1, 12), min_size=2, max_size=3), st.randoms())
def test_splits_do_not_depend_on_the_order_of_files(counts, rng):
    order = list(range(sum(counts)))
    rng.shuffle(order)
    files, shuffled = make_files(counts), make_files(counts, order=order)
    expected = dict(zip(files.names, assign_splits(files, DataConfig()), strict=True))
    assert dict(zip(shuffled.names, assign_splits(shuffled, DataConfig()), strict=True)) == expected
    groups = tuple(f"g{i % 7}" for i in range(sum(counts)))
    grouped = (make_files(counts, groups), make_files(counts, groups, order))
    a, b = (dict(zip(f.names, assign_splits(f, DataConfig()), strict=True)) for f in grouped)
    assert a == b


def test_most_files_keep_their_split_when_others_are_added():
    small, large = make_files([200]), make_files([220])
    before = dict(zip(small.names, assign_splits(small, DataConfig()), strict=True))
    after = dict(zip(large.names, assign_splits(large, DataConfig()), strict=True))
    assert np.mean([before[name] == after[name] for name in small.names]) > 0.9


def test_composed_and_decomposed_names_have_one_split():
    names = [f"a/é{i}.png" for i in range(50)]
    labels = np.zeros(50, np.int32)
    splits = [
        assign_splits(
            LabeledFiles(tuple(unicodedata.normalize(form, name) for name in names), (), labels, ("a",)), DataConfig()
        ).tolist()
        for form in ("NFC", "NFD")
    ]
    assert splits[0] == splits[1]


def test_splits_are_those_of_version_one():
    files = make_files([10, 5])
    assigned = assign_splits(files, DataConfig())
    # Pinned: the same files must be tested on every machine and in every version.
    assert "".join(map(str, assigned)) == "202010010010002"


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 11)), min_size=20, max_size=120),
    st.floats(0.1, 0.4),
    st.floats(0.1, 0.4),
)
def test_no_group_is_in_two_splits(rows, test, valid):
    labels = np.array([label for label, _ in rows], np.int32)
    groups = tuple(f"g{group}" for _, group in rows)
    files = LabeledFiles(tuple(map(str, range(len(rows)))), (), labels, tuple("abcd"), None, groups)
    assigned = assign_splits(files, DataConfig(test_fraction=test, valid_fraction=valid))
    split_of = {}
    for group, split in zip(groups, assigned, strict=True):
        assert split_of.setdefault(group, split) == split
    if len(set(groups)) >= 3:
        assert set(assigned) == {0, 1, 2}


@given(st.lists(st.integers(2, 9), min_size=2, max_size=4), st.randoms(use_true_random=False))
def test_class_of_two_groups_has_one_in_train_and_one_in_valid(num_groups, rng):
    groups, labels = [], []
    for label, count in enumerate(num_groups):
        for group in range(count):
            size = rng.randint(1, 6)
            groups += [f"{label}-{group}"] * size
            labels += [label] * size
    files = LabeledFiles(
        tuple(map(str, range(len(labels)))),
        (),
        np.array(labels, np.int32),
        tuple(map(str, num_groups)),
        None,
        tuple(groups),
    )
    assigned = assign_splits(files, DataConfig())
    for label, count in enumerate(num_groups):
        assert set(assigned[files.labels == label]) == ({0, 1} if count == 2 else {0, 1, 2})


def test_many_groups_come_close_to_the_fractions():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 200, 3000)
    labels = rng.integers(0, 3, 3000).astype(np.int32)
    files = LabeledFiles(
        tuple(map(str, range(3000))), (), labels, ("a", "b", "c"), None, tuple(f"g{g}" for g in groups)
    )
    assigned = assign_splits(files, DataConfig())
    for label in range(3):
        shares = np.bincount(assigned[labels == label], minlength=3) / (labels == label).sum()
        np.testing.assert_allclose(shares, [0.64, 0.16, 0.2], atol=0.02)


def test_order_of_the_file_system_does_not_matter(tmp_path, monkeypatch):
    make_folder(tmp_path, {"b": 7, "a": 9})
    expected = load(tmp_path).describe()
    walk = os.walk

    def shuffled(*args, **options):
        for path, folders, files in walk(*args, **options):
            random.Random(3).shuffle(files)
            yield path, folders, files

    monkeypatch.setattr(os, "walk", shuffled)
    assert load(tmp_path).describe() == expected


def test_duplicates_across_splits_are_counted(tmp_path):
    make_folder(tmp_path / "train", {"a": 4, "b": 4})
    make_folder(tmp_path / "test", {"a": 1, "b": 1})
    (tmp_path / "test" / "a" / "copy.png").write_bytes((tmp_path / "train" / "b" / "0.png").read_bytes())
    loaded = load(tmp_path)
    # make_folder writes the same pixels again: test/a/0 is train/a/0 and test/b/0 is train/a/1.
    total = loaded.duplicates["train/test"] + loaded.duplicates["valid/test"]
    assert total == 3


# Storage.


def test_store_on_disk_equals_memory_and_is_reused(tmp_path, monkeypatch):
    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path / "cache"))
    root = make_folder(tmp_path / "data", {"a": 9, "b": 9})
    in_memory = load(root)
    assert not (tmp_path / "cache").exists()
    on_disk = load(root, max_memory_gb=1e-9)
    assert isinstance(on_disk.train.images, ImageRows)
    assert on_disk.describe() == in_memory.describe()
    np.testing.assert_array_equal(np.asarray(on_disk.valid.images), in_memory.valid.images)
    (folder,) = (p for p in (tmp_path / "cache" / "images").iterdir() if p.is_dir())
    assert np.load(folder / "images.npy").shape == (18, 8, 8, 3)
    monkeypatch.setattr(ImageFormat, "read", lambda *_: pytest.fail("decoded again"))
    assert load(root, max_memory_gb=1e-9).describe() == in_memory.describe()
    os.utime(root / "a" / "0.png", ns=(1, 1))
    with pytest.raises(pytest.fail.Exception):
        load(root, max_memory_gb=1e-9)


def test_store_remembers_bad_files(tmp_path, monkeypatch):
    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path / "cache"))
    root = make_folder(tmp_path / "data", {"a": 9, "b": 9})
    (root / "a" / "bad.png").write_bytes(b"x")
    expected = load(root, on_error="skip").describe()
    for _ in range(2):
        assert load(root, on_error="skip", max_memory_gb=1e-9).describe() == expected
    with pytest.raises(UserError, match=r"bad\.png cannot be read"):
        load(root, max_memory_gb=1e-9)


def test_killed_store_is_written_again(tmp_path, monkeypatch):
    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path / "cache"))
    root = make_folder(tmp_path / "data", {"a": 9, "b": 9})
    decode = image_store._decode

    def interrupt(*args):
        decode(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(image_store, "_decode", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load(root, max_memory_gb=1e-9)
    monkeypatch.setattr(image_store, "_decode", decode)
    stores = tmp_path / "cache" / "images"
    assert not [p for p in stores.iterdir() if p.is_dir()]
    (stores / "0.part").mkdir()
    assert load(root, max_memory_gb=1e-9).describe() == load(root).describe()


def test_store_that_cannot_be_written_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path / "file"))
    root = make_folder(tmp_path / "data", {"a": 3, "b": 3})
    with pytest.raises(UserError, match=r"The images need 1\.15e-06 GB in .*Set TLJAX_CACHE"):
        load(root, max_memory_gb=1e-9)


def test_gray_images_stay_gray_unless_one_has_colors(tmp_path):
    for i in range(6):
        save(tmp_path / "a" / f"{i}.png", RNG.integers(0, 256, (6, 6, 1), dtype=np.uint8))
        save(tmp_path / "b" / f"{i}.png", Image.fromarray(RNG.integers(0, 256, (6, 6), dtype=np.uint8)).convert("LA"))
    assert load(tmp_path).train.images.shape[-1] == 1
    assert load(tmp_path, background="#ff0000").train.images.shape[-1] == 3
    save(tmp_path / "b" / "color.png", RNG.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    images = load(tmp_path).train.images
    assert images.shape[-1] == 3
    assert (images[..., 0] == images[..., 1]).all((1, 2)).sum() >= len(images) - 1


def test_rows_on_disk_behave_like_an_array(tmp_path):
    array = RNG.integers(0, 256, (20, 4, 4, 3), dtype=np.uint8)
    np.save(tmp_path / "x.npy", array)
    order = np.array([3, 1, 4, 15, 9])
    rows = ImageRows(np.load(tmp_path / "x.npy", mmap_mode="r"), order)
    expected = array[order]
    assert (len(rows), rows.shape, rows.ndim, rows.dtype, rows.nbytes) == (
        5,
        (5, 4, 4, 3),
        4,
        np.uint8,
        expected.nbytes,
    )
    for index in (slice(1, 3), np.array([[0, 4], [2, 2]]), 2, np.array([], int)):
        np.testing.assert_array_equal(rows[index], expected[index])
    np.testing.assert_array_equal(rows.select(np.array([4, 0])), expected[[4, 0]])
    on_disk, in_memory = (data.Split(x, np.arange(5, dtype=np.int32)) for x in (rows, expected))
    assert on_disk.fingerprint == in_memory.fingerprint
    assert on_disk.image_hashes == in_memory.image_hashes
    assert on_disk.select(np.array([2, 1])).fingerprint == in_memory.select(np.array([2, 1])).fingerprint


def test_load_images_returns_errors_by_name(tmp_path):
    good = save(tmp_path / "good.png")
    config = DataConfig(on_error="skip")
    images, errors = load_images(("g", "m"), (good, tmp_path / "missing.png"), ImageFormat(8), config)
    np.testing.assert_array_equal(images[0], ImageFormat(8).read(good))
    assert list(errors) == ["m"]
    assert "There is no image" in errors["m"]


# The command.


def run_command(*arguments):
    from tljax.data.__main__ import main

    return main([str(a) for a in arguments])


def test_command_describes_a_folder(tmp_path, capsys):
    root = make_folder(tmp_path / "data", {"cats": 8, "dogs": 5})
    (root / "cats" / "bad.jpg").write_bytes(b"x")
    (root / "cats" / "notes.txt").write_text("x")
    (root / "dogs" / "copy.png").write_bytes((root / "cats" / "0.png").read_bytes())
    sheet = tmp_path / "sheet.png"
    assert run_command(root, "--sheet", sheet, "--columns", 3) == 0
    out = capsys.readouterr().out
    for text in (
        "15 images in 2 classes",
        "width×height: min 8×6, median 8×6, max 8×6",
        "formats: PNG RGB 14",
        "1 files are not images and are ignored:\n  cats/notes.txt",
        "1 images cannot be read:",
        "1 groups of images with equal pixels",
        "1 in more than one class",
        "cats/0.png",
        f"--config.data.path={root}",
    ):
        assert text in out
    with Image.open(sheet) as image:
        assert image.width == 1200
    assert run_command(tmp_path / "none") == 2
    assert "There is no folder, table or config" in capsys.readouterr().err


def test_command_describes_a_config(tmp_path, capsys):
    assert run_command("configs/pretrain_digits.py", "--sheet", tmp_path / "sheet.png") == 0
    out = capsys.readouterr().out
    assert "digits: images of 8×8 with 1 channels" in out
    assert (tmp_path / "sheet.png").is_file()


def test_command_of_emoji(tmp_path, capsys):
    root = os.environ.get("TLJAX_DATA_DIR")
    if root is None:
        pytest.skip("TLJAX_DATA_DIR is not set")
    assert run_command(f"{root}/emoji/google", "--sheet", tmp_path / "sheet.png") == 0
    assert "1,906 images in 9 classes" in capsys.readouterr().out
