"""Images for benchmarks in IDX files, which the peers' scripts and tljax read. Needs only NumPy."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np

PREFIXES = ("train", "t10k")


def read(folder: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 [N, H, W] and labels uint8 [N] of prefix `train` or `t10k`, from plain or gzipped files."""
    arrays = []
    for name, rank in ((f"{prefix}-images-idx3-ubyte", 3), (f"{prefix}-labels-idx1-ubyte", 1)):
        path = folder / name
        raw = path.read_bytes() if path.exists() else gzip.decompress((folder / f"{name}.gz").read_bytes())
        shape = struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank])
        arrays.append(np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape))
    return arrays[0], arrays[1]


def write(folder: Path, prefix: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Write images uint8 [N, H, W] and labels [N] as plain IDX files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
        header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        (folder / name).write_bytes(header + array.astype(np.uint8).tobytes())


def first_per_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the first `count` images of each class, in ascending order."""
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:count] for c in np.unique(labels)]))


def random_images(per_class: int, size: int, num_classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Return random images uint8 [N, size, size] and labels uint8 [N], `per_class` of each class."""
    rng = np.random.default_rng(0)
    labels = np.arange(per_class * num_classes) % num_classes
    return rng.integers(0, 256, (len(labels), size, size), np.uint8), labels.astype(np.uint8)


def write_subset(folder: Path, source: Path | None, per_class: int, num_test: int = 10) -> None:
    """Write the images of the tutorial's script: the first ones of each class, or random ones.

    Args:
      folder: destination of the four IDX files.
      source: folder with Fashion-MNIST; None: random images of its size.
      per_class: training images per class, and as many validation images.
      num_test: images per class that follow those for validation in the test files.
    """
    for prefix, count in zip(PREFIXES, (per_class, per_class + num_test), strict=True):
        images, labels = read(source, prefix) if source else random_images(count, 28)
        indices = first_per_class(labels, count)
        write(folder, prefix, images[indices], labels[indices])
