"""Pictures for benchmarks in IDX files, the format that every script and tljax read. Needs NumPy alone."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np

PREFIXES = ("train", "t10k")


def read(folder: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 [N, H, W] and labels uint8 [N] of `train` or `t10k`, plain or gzipped."""
    arrays = []
    for name, rank in ((f"{prefix}-images-idx3-ubyte", 3), (f"{prefix}-labels-idx1-ubyte", 1)):
        path = folder / name
        raw = path.read_bytes() if path.exists() else gzip.decompress((folder / f"{name}.gz").read_bytes())
        shape = struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank])
        arrays.append(np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape))
    return arrays[0], arrays[1]


def write(folder: Path, prefix: str, images: np.ndarray, labels: np.ndarray) -> None:
    """The reverse of `read`, plain."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
        header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        (folder / name).write_bytes(header + array.astype(np.uint8).tobytes())


def first_per_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Indices of the first `count` rows of each class, in ascending order."""
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:count] for c in np.unique(labels)]))


def random_pictures(per_class: int, size: int, classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of chance and their labels, so many of each class."""
    rng, labels = np.random.default_rng(0), np.arange(per_class * classes) % classes
    return rng.integers(0, 256, (len(labels), size, size), np.uint8), labels.astype(np.uint8)


def write_subset(folder: Path, source: Path | None, per_class: int, beyond: int = 10) -> None:
    """What the tutorial's script looks at: the first pictures of each class of a folder's files, or random ones.

    Args:
      folder: where the four files are written.
      source: folder with Fashion-MNIST; None: random pictures of its size.
      per_class: pictures of each class for training, and as many for validation.
      beyond: further ones of each class in the test files, behind those for validation.
    """
    for prefix, count in zip(PREFIXES, (per_class, per_class + beyond), strict=True):
        images, labels = read(source, prefix) if source else random_pictures(count, 28)
        rows = first_per_class(labels, count)
        write(folder, prefix, images[rows], labels[rows])
