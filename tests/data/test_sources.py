"""Readers: IDX files whole and damaged, Fashion-MNIST, and a prepared TFDS set."""

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


def test_plain_and_gzipped_files_are_read(folder):
    d = data.load(DataConfig(name="idx", path=str(folder)), 0)
    assert d.classes == ("0", "1", "2", "3")
    assert d.train.images.shape[1:] == (5, 6, 1)
    raw = (folder / "train-images-idx3-ubyte").read_bytes()[16:]
    pixels = np.frombuffer(raw, np.uint8).reshape(40, 5, 6)
    read = idx.read_source(folder)
    assert (read.train.images[..., 0] == pixels).all()
    assert (read.test.labels == np.arange(20) % 4).all()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda raw: raw[:-5], "should hold 1200 bytes"),
        (lambda raw: raw[:9], "ends within its header"),
        (lambda raw: b"\0\0\x0d" + raw[3:], "not an IDX file of unsigned bytes"),
        (lambda raw: b"", "not an IDX file"),
    ],
)
def test_damaged_files_are_one_sentence(folder, damage, words):
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError) as caught:
        idx.read_source(folder)
    assert words in str(caught.value)


def test_truncated_gzip_and_missing_file(folder):
    path = folder / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match="cannot be read"):
        idx.read_source(folder)
    path.unlink()
    with pytest.raises(UserError, match=r"neither t10k-images-idx3-ubyte nor t10k-images-idx3-ubyte\.gz"):
        idx.read_source(folder)


def test_fashion_mnist_without_a_folder_says_what_is_missing(monkeypatch):
    monkeypatch.delenv("TLJAX_DATA_DIR", raising=False)
    with pytest.raises(UserError, match=r"needs data\.path, or TLJAX_DATA_DIR"):
        data.load(DataConfig(name="fashion-mnist"), 0)


@pytest.mark.skipif("TLJAX_DATA_DIR" not in os.environ, reason="TLJAX_DATA_DIR is unset: the real files are not here")
def test_the_real_fashion_mnist():
    d = data.load(DataConfig(name="fashion-mnist", split="first_per_class", labels_per_class=200), 0)
    assert (len(d.train), len(d.valid), d.test.size) == (2000, 2000, 8000)
    assert d.classes[9] == "ankle boot"
    # Facts of the published set: its first training picture is an ankle boot, its first test picture too.
    source = registry.load_source(DataConfig(name="fashion-mnist"))
    assert source.train.labels[0] == 9
    assert source.test.labels[0] == 9
    assert np.bincount(source.train.labels).tolist() == [6000] * 10


def test_a_prepared_tfds_set_is_read_without_tensorflow(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    images = np.random.default_rng(0).integers(0, 256, (24, 6, 6, 3), dtype=np.uint8)

    class TinyPictures(tfds.core.GeneratorBasedBuilder):
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

    TinyPictures(data_dir=tmp_path).download_and_prepare(file_format="array_record")
    d = data.load(DataConfig(name="tfds:tiny_pictures", path=str(tmp_path), valid_fraction=0.25), 0)
    assert d.classes == ("cat", "dog")
    assert (len(d.train), len(d.valid), d.test.size) == (12, 4, 8)
    expected = {images[i].tobytes() for i in range(16)}
    assert {i.tobytes() for i in [*d.train.images, *d.valid.images]} == expected
    with pytest.raises(UserError, match="tfds:tiny_picture cannot be read"):
        data.load(DataConfig(name="tfds:tiny_picture", path=str(tmp_path)), 0)
