"""Containers for datasets: splits of images with labels, unlabeled images, and a test split that is opened once."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from tljax.errors import UserError

# The label of pixels that losses and metrics leave out.
IGNORED = 255
# Images of a split on disk that are hashed at once.
BLOCK = 256


class ImageRows:
    """Rows of an array of images on disk, read when they are indexed.

    Args:
      base: uint8 [M, H, W, C], a memory-mapped array.
      rows: int [N], rows of `base`.

    Attributes:
      base: the array.
      dtype: uint8.
      ndim: 4.
      shape: (N, H, W, C).
      nbytes: size of all rows in memory.
    """

    def __init__(self, base: np.ndarray, rows: np.ndarray):
        self.base = base
        self._rows = np.asarray(rows, np.int64)
        self.dtype = base.dtype
        self.ndim = base.ndim
        self.shape = (len(self._rows), *base.shape[1:])
        self.nbytes = math.prod(self.shape) * base.itemsize

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.asarray(self.base[self._rows[index]])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)

    def select(self, indices: np.ndarray) -> ImageRows:
        """Return the given rows of these rows; nothing is read."""
        return ImageRows(self.base, self._rows[indices])


Images = np.ndarray | ImageRows


def select_images(images: Images, indices: np.ndarray) -> Images:
    """Return rows of images: a copy in memory, or rows of the same array on disk."""
    return images.select(indices) if isinstance(images, ImageRows) else np.ascontiguousarray(images[indices])


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels.

    Attributes:
      images: uint8 [N, H, W, C], C is 1 or 3; an array in memory, or rows of one on disk.
      labels: classes of images, int32 [N]; of pixels, uint8 [N, H, W] with 255 for ignored ones; of boxes, int32
        [N, M] with -1 for padding; or without boxes, targets of a custom task [N, K], integers or floats.
      boxes: float32 [N, M, 4], [y0, x0, y1, x1] in pixels of the image, zeros for padding; None: no boxes.
      crowd: bool [N, M], boxes around groups of objects or unclear objects, which are excluded from training and
        count neither for nor against detections in evaluation; None: no such boxes.
    """

    images: Images
    labels: np.ndarray
    boxes: np.ndarray | None = None
    crowd: np.ndarray | None = None

    def __post_init__(self):
        n, *image_size = self.images.shape[:3]
        rank_fits = {1: True, 2: True, 3: list(self.labels.shape[1:]) == image_size}
        boxes_shape = [*self.labels.shape, 4]
        if (
            (self.images.dtype != np.uint8 or self.images.ndim != 4 or n != len(self.labels))
            or not rank_fits.get(self.labels.ndim)
            or (self.boxes is not None and list(self.boxes.shape) != boxes_shape)
            or (self.crowd is not None and list(self.crowd.shape) != boxes_shape[:-1])
        ):
            raise ValueError(f"not a split: {self.images.dtype}{self.images.shape}, {self.labels.shape}")

    def __len__(self) -> int:
        return len(self.labels)

    def targets(self, side: int) -> dict[str, np.ndarray]:
        """Return the labels, and the boxes if there are any, under their names in a batch.

        Args:
          side: side of the square network input, in pixels.

        Returns:
          {"label": ...}; with boxes {"label": [N, M], "boxes": [N, M, 4]}, where boxes are in pixels of the input and
          the label of a crowd is -2.
        """
        if self.boxes is None:
            return {"label": self.labels}
        labels = self.labels if self.crowd is None else np.where(self.crowd, -2, self.labels)
        return {"label": labels, "boxes": self.boxes * self.box_scale(side)}

    def box_scale(self, side: int) -> np.ndarray:
        """Return the factors from boxes [..., 4] in the images to boxes in a square input of `side`: float32 [4]."""
        height, width = self.images.shape[1:3]
        return np.array([side / height, side / width] * 2, np.float32)

    def select(self, indices: np.ndarray) -> Split:
        """Return a split of the given rows, in the given order."""
        rows: list[Any] = [None if x is None else select_images(x, indices) for x in self._arrays]
        return Split(*rows)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the images' shape and of all arrays, in row order."""
        return _fingerprint(*(x for x in self._arrays if x is not None))

    @property
    def _arrays(self) -> tuple[Images | None, ...]:
        dtype = "<f4" if np.issubdtype(self.labels.dtype, np.floating) else "<i4"
        labels = self.labels if self.labels.ndim == 3 else self.labels.astype(dtype)
        return self.images, labels, self.boxes, self.crowd

    @functools.cached_property
    def image_hashes(self) -> list[bytes]:
        """One hash per image; equal images have equal hashes."""
        return _image_hashes(self.images)


class UnlabelledImages:
    """Images whose labels cannot be recovered: the array is a copy, and its order must not depend on the labels.

    Attributes:
      images: uint8 [N, H, W, C]; rows of an array on disk are not copied.
    """

    def __init__(self, images: Images):
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError(f"not images: {images.dtype}{images.shape}")
        self.images = images if isinstance(images, ImageRows) else np.array(images, order="C")

    def __len__(self) -> int:
        return len(self.images)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the images and their shape, in row order."""
        return _fingerprint(self.images)

    @functools.cached_property
    def image_hashes(self) -> list[bytes]:
        """One hash per image; equal images have equal hashes."""
        return _image_hashes(self.images)


class HeldOutSplit:
    """A test split that can be opened once.

    Attributes:
      size: number of images, available before opening.
      fingerprint: fingerprint of the split, available before opening.
    """

    def __init__(self, split: Split):
        self._split: Split | None = split
        self.size = len(split)
        self.fingerprint = split.fingerprint

    def fresh(self) -> HeldOutSplit:
        """Return the same split, unopened, for another run."""
        if self._split is None:
            raise ValueError("opened already")
        return HeldOutSplit(self._split)

    def open(self) -> Split:
        """Return the split.

        Raises:
          UserError: the split was opened before.
        """
        if self._split is None:
            raise UserError("The test split was already opened in this run; it is opened once, at the end.")
        split, self._split = self._split, None
        return split


@dataclasses.dataclass(frozen=True, eq=False)
class RawDataset:
    """A dataset in its published splits.

    Attributes:
      train: training images.
      test: test images.
      classes: class names.
      valid: validation images; None: they are held out of the training images.
      skipped: files that could not be read and were left out (`data.on_error="skip"`).
      ignored: files beside the images that are not images, or are hidden.
      resize: how image files of any size became `images`, "crop", "pad" or "stretch"; None: they all had this size,
        or the source has resized them together with masks or boxes.
    """

    train: Split
    test: Split
    classes: tuple[str, ...]
    valid: Split | None = None
    skipped: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    resize: str | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class DataSplits:
    """The splits of a run.

    Attributes:
      name: `data.name`.
      classes: class names.
      train: labeled training images.
      valid: validation images.
      test: test images, not opened yet.
      duplicates: {"train/test": number of test images that also occur in train, ...} for each pair of splits.
      unlabelled: training images without labels; None: `data.unlabelled` is 0.
      skipped: files that could not be read and were left out.
      ignored: files beside the images that are not images, or are hidden.
      resize: as of `RawDataset`.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    valid: Split
    test: HeldOutSplit
    duplicates: dict[str, int]
    unlabelled: UnlabelledImages | None = None
    skipped: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    resize: str | None = None

    def describe(self) -> dict:
        """Return name, classes, image shape [H, W, C], size and fingerprint of each split, and duplicates, as JSON."""
        splits = {"train": self.train, "unlabelled": self.unlabelled, "valid": self.valid}
        return {
            "name": self.name,
            "classes": list(self.classes),
            "image_shape": list(self.train.images.shape[1:]),
            **{k: {"fingerprint": s.fingerprint, "size": len(s)} for k, s in splits.items() if s is not None},
            "test": {"fingerprint": self.test.fingerprint, "size": self.test.size},
            "duplicates": dict(self.duplicates),
            **({"skipped": list(self.skipped)} if self.skipped else {}),
            **({"ignored": {"count": len(self.ignored), "files": list(self.ignored[:10])}} if self.ignored else {}),
            **({"resize": self.resize} if self.resize else {}),
        }


def _fingerprint(images: Images, *labels: Images) -> str:
    digest = hashlib.sha256(repr(images.shape).encode())
    for array in (images, *labels):
        for block in _blocks(array):
            digest.update(np.ascontiguousarray(block))
    return digest.hexdigest()


def _image_hashes(images: Images) -> list[bytes]:
    blocks = _blocks(images)
    return [hashlib.blake2b(np.ascontiguousarray(i), digest_size=16).digest() for block in blocks for i in block]


def _blocks(images: Images) -> Iterator[np.ndarray]:
    """Yield all rows in order; rows on disk in blocks that fit into memory."""
    if isinstance(images, np.ndarray):
        yield images
        return
    for start in range(0, len(images), BLOCK):
        yield images[start : start + BLOCK]
