"""Data sources: IDX files, Fashion-MNIST, a prepared TFDS dataset, and errors of the registry."""

import gzip
import os
import struct

import numpy as np
import pytest

from tljax import data
from tljax.config import DataConfig
from tljax.data.sources import idx, registry
from tljax.errors import UserError


def write_idx(path, array):
    raw = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for prefix, count, suffix in (("train", 40, ""), ("t10k", 20, ".gz")):
        images = rng.integers(0, 256, (count, 5, 6), dtype=np.uint8)
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte{suffix}", images)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte{suffix}", np.arange(count, dtype=np.uint8) % 4)
    return tmp_path


def test_idx_reads_plain_and_gzipped_files(folder):
    splits = data.load(DataConfig(name="idx", path=str(folder)), 0)
    assert splits.classes == ("0", "1", "2", "3")
    assert splits.train.images.shape[1:] == (5, 6, 1)
    raw = (folder / "train-images-idx3-ubyte").read_bytes()[16:]
    pixels = np.frombuffer(raw, np.uint8).reshape(40, 5, 6)
    source = idx.read_source(folder)
    assert (source.train.images[..., 0] == pixels).all()
    assert (source.test.labels == np.arange(20) % 4).all()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:-5], "should have 1200 bytes"),
        (lambda raw: raw[:9], "ends within its header"),
        (lambda raw: b"\0\0\x0d" + raw[3:], "not an IDX file of unsigned bytes"),
        (lambda raw: b"", "not an IDX file"),
    ],
)
def test_idx_names_damaged_files(folder, damage, message):
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError) as error:
        idx.read_source(folder)
    assert message in str(error.value)


def test_idx_names_truncated_gzip_and_missing_files(folder):
    path = folder / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match="cannot be read"):
        idx.read_source(folder)
    path.unlink()
    with pytest.raises(UserError, match=r"neither t10k-images-idx3-ubyte nor t10k-images-idx3-ubyte\.gz"):
        idx.read_source(folder)


def test_fashion_mnist_without_a_folder_raises(monkeypatch):
    monkeypatch.delenv("TLJAX_DATA_DIR", raising=False)
    with pytest.raises(UserError, match=r"needs data\.path, or TLJAX_DATA_DIR"):
        data.load(DataConfig(name="fashion-mnist"), 0)


@pytest.mark.skipif("TLJAX_DATA_DIR" not in os.environ, reason="TLJAX_DATA_DIR is not set")
def test_fashion_mnist_published_files():
    splits = data.load(DataConfig(name="fashion-mnist", split="first_per_class", labels_per_class=200), 0)
    assert (len(splits.train), len(splits.valid), splits.test.size) == (2000, 2000, 8000)
    assert splits.classes[9] == "ankle boot"
    # In the published files, the first training image and the first test image are ankle boots.
    source = registry.load_source(DataConfig(name="fashion-mnist"))
    assert source.train.labels[0] == 9
    assert source.test.labels[0] == 9
    assert np.bincount(source.train.labels).tolist() == [6000] * 10


def test_tfds_reads_a_prepared_classification_dataset(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    images = np.random.default_rng(0).integers(0, 256, (24, 6, 6, 3), dtype=np.uint8)

    class TinyImages(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = tmp_path

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(6, 6, 3)),
                    "label": tfds.features.ClassLabel(names=["cat", "dog"]),
                }
            )
            return self.dataset_info_from_configs(features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._rows(0, 16), "test": self._rows(16, 24)}

        def _rows(self, start, stop):
            from PIL import Image

            for i in range(start, stop):
                yield i, {"image": Image.fromarray(images[i]), "label": i % 2}

        def _generate_examples(self):
            raise AssertionError("each split has its own generator")

    TinyImages(data_dir=tmp_path).download_and_prepare(file_format="array_record")
    splits = data.load(DataConfig(name="tfds:tiny_images", path=str(tmp_path), valid_fraction=0.25), 0)
    assert splits.classes == ("cat", "dog")
    assert (len(splits.train), len(splits.valid), splits.test.size) == (12, 4, 8)
    expected = {images[i].tobytes() for i in range(16)}
    assert {i.tobytes() for i in [*splits.train.images, *splits.valid.images]} == expected
    with pytest.raises(UserError, match="tfds:tiny_image cannot be read"):
        data.load(DataConfig(name="tfds:tiny_image", path=str(tmp_path)), 0)


@pytest.mark.parametrize(
    ("config", "task", "message"),
    [
        ({"name": "digits"}, "detection", '"digits" has no labels for the task detection; sources that have: scenes, '),
        ({"name": "yolo"}, "segmentation", "sources that have: scenes, coco, voc, masks, tfds:NAME"),
        ({"name": "scenes"}, "classification", "sources that have: digits, idx, fashion-mnist, folder, csv, tfds:NAME"),
        ({"name": "cocoo"}, "detection", 'no data.name "cocoo"; did you mean "coco"'),
        ({"name": "digits", "options": {"train": 3}}, "classification", 'data.options: digits has no "train"'),
        ({"name": "masks", "path": ".", "options": {"class": ()}}, "segmentation", 'did you mean "classes"'),
        ({"name": "masks"}, "segmentation", "needs data.path"),
        ({"name": "masks", "path": "nowhere"}, "segmentation", "data.path=nowhere is not a folder"),
    ],
)
def test_load_source_errors(config, task, message):
    with pytest.raises(UserError, match=message):
        registry.load_source(DataConfig(**config), task)
