"""IDX files, the format of MNIST (http://yann.lecun.com/exdb/mnist), plain or gzipped."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from tljax.config import DataConfig
from tljax.data.dataset import RawDataset, Split
from tljax.data.sources.options import NoOptions, parse_options
from tljax.errors import UserError

PREFIXES = {"train": "train", "test": "t10k"}
FASHION_CLASSES = (
    "t-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


def load(config: DataConfig, task: str) -> RawDataset:
    """Load the four IDX files in `data.path`.

    Args:
      config: the data section of the config.
      task: "classification".
    """
    parse_options(config, NoOptions)
    if config.path is None:
        raise UserError("data.name='idx' needs data.path, the folder of the four IDX files.")
    return read_source(Path(config.path))


def load_fashion(config: DataConfig, task: str) -> RawDataset:
    """Load Fashion-MNIST (Xiao et al. 2017) from `data.path`, else from `$TLJAX_DATA_DIR/fashion-mnist`.

    Args:
      config: the data section of the config.
      task: "classification".
    """
    parse_options(config, NoOptions)
    if config.path is None and "TLJAX_DATA_DIR" not in os.environ:
        raise UserError(
            "data.name='fashion-mnist' needs data.path, or TLJAX_DATA_DIR, the folder that contains fashion-mnist/."
        )
    folder = Path(config.path) if config.path else Path(os.environ["TLJAX_DATA_DIR"]) / "fashion-mnist"
    return read_source(folder, FASHION_CLASSES)


def read_array(path: Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes. Raises UserError if it is another format or truncated."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] != 0x08:
        raise UserError(f"{path} is not an IDX file of unsigned bytes.")
    rank = raw[3]
    if len(raw) < 4 + 4 * rank:
        raise UserError(f"{path} ends within its header.")
    shape = struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank])
    body = np.frombuffer(raw, np.uint8, offset=4 + 4 * rank)
    if len(body) != math.prod(shape):
        raise UserError(f"{path} should have {math.prod(shape)} bytes for {shape}, but has {len(body)}.")
    return body.reshape(shape)


def read_source(folder: Path, classes: tuple[str, ...] | None = None) -> RawDataset:
    """Read the images and labels of train and t10k (test) in a folder.

    Args:
      folder: folder of `train-images-idx3-ubyte[.gz]` and the three other files.
      classes: class names; None: the labels as text.
    """
    splits = {name: _read_split(folder, prefix) for name, prefix in PREFIXES.items()}
    count = 1 + max(int(split.labels.max()) for split in splits.values())
    if classes is not None and count > len(classes):
        raise UserError(f"{folder} has the label {count - 1}, but there are {len(classes)} class names.")
    return RawDataset(splits["train"], splits["test"], classes or tuple(map(str, range(count))))


def _read_split(folder: Path, prefix: str) -> Split:
    images = read_array(_find_file(folder, f"{prefix}-images-idx3-ubyte"))
    labels = read_array(_find_file(folder, f"{prefix}-labels-idx1-ubyte"))
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or not len(labels):
        raise UserError(f"{folder}: {prefix} has images {images.shape} for labels {labels.shape}.")
    return Split(images[..., None], labels.astype(np.int32))


def _find_file(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return path
    raise UserError(f"{folder} has neither {name} nor {name}.gz.")
