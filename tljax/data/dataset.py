"""What the data package hands on: splits of pictures with labels, and a test split that opens once."""

from __future__ import annotations

import dataclasses
import functools
import hashlib

import numpy as np

from tljax.errors import UserError

# The label of a pixel that does not count.
IGNORED = 255


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Pictures with what is known of them.

    Attributes:
      images: uint8 [N, H, W, C], C is 1 or 3.
      labels: int32 [N], the class of each picture; or uint8 [N, H, W], that of each of its pixels, 255 where it does
        not count; or int32 [N, M], that of each of its boxes, -1 where there is none.
      boxes: float32 [N, M, 4], [y0, x0, y1, x1] in pixels of the picture, zeros where there is none; None: nowhere.
      crowd: bool [N, M], boxes around many objects or unclear ones, which nothing is learned from and whose detection
        counts neither way; None: there are none.
    """

    images: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray | None = None
    crowd: np.ndarray | None = None

    def __post_init__(self):
        n, *sides = self.images.shape[:3]
        fits = {1: True, 2: self.boxes is not None, 3: list(self.labels.shape[1:]) == sides}
        shapes = [*self.labels.shape, 4]
        if (
            (self.images.dtype != np.uint8 or self.images.ndim != 4 or n != len(self.labels))
            or not fits.get(self.labels.ndim)
            or (self.boxes is not None and list(self.boxes.shape) != shapes)
            or (self.crowd is not None and list(self.crowd.shape) != shapes[:-1])
        ):
            raise ValueError(f"not a split: {self.images.dtype}{self.images.shape}, {self.labels.shape}")

    def __len__(self) -> int:
        return len(self.labels)

    def targets(self, side: int) -> dict[str, np.ndarray]:
        """What a batch has of it besides its pictures, by the batch's names; the label of a crowd is -2.

        Boxes are in pixels of a square input of `side`.
        """
        if self.boxes is None:
            return {"label": self.labels}
        known = self.labels if self.crowd is None else np.where(self.crowd, -2, self.labels)
        return {"label": known, "boxes": self.boxes * self.scale(side)}

    def scale(self, side: int) -> np.ndarray:
        """By how much boxes [..., 4] grow from the pictures to a square input of `side`: float32 [4]."""
        height, width = self.images.shape[1:3]
        return np.array([side / height, side / width] * 2, np.float32)

    def select(self, indices: np.ndarray) -> Split:
        """The split with only these rows, in this order."""
        rows = (None if x is None else np.ascontiguousarray(x[indices]) for x in self._arrays)
        return Split(*rows)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over shape, pictures and all that is known of them, in their order."""
        return _fingerprint(*(x for x in self._arrays if x is not None))

    @property
    def _arrays(self) -> tuple[np.ndarray | None, ...]:
        labels = self.labels if self.labels.ndim == 3 else self.labels.astype("<i4")
        return self.images, labels, self.boxes, self.crowd

    @functools.cached_property
    def image_hashes(self) -> list[bytes]:
        """One hash per picture; equal pictures have equal hashes."""
        return _image_hashes(self.images)


class UnlabelledImages:
    """Pictures as uint8 [N, H, W, C] whose labels are out of reach: the array is a copy that nothing else refers to.

    Whoever makes one gives the pictures in an order that tells nothing of their labels.
    """

    def __init__(self, images: np.ndarray):
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError(f"not pictures: {images.dtype}{images.shape}")
        self.images = np.array(images, order="C")

    def __len__(self) -> int:
        return len(self.images)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over shape and pictures in their order."""
        return _fingerprint(self.images)

    @functools.cached_property
    def image_hashes(self) -> list[bytes]:
        """One hash per picture; equal pictures have equal hashes."""
        return _image_hashes(self.images)


class HeldOutSplit:
    """A test split: its size and fingerprint are free to see, its pictures come out once."""

    def __init__(self, split: Split):
        self._split: Split | None = split
        self.size, self.fingerprint = len(split), split.fingerprint

    def fresh(self) -> HeldOutSplit:
        """The same split, for another run to open once."""
        if self._split is None:
            raise ValueError("opened already")
        return HeldOutSplit(self._split)

    def open(self) -> Split:
        """Hands out the split, the first time only."""
        if self._split is None:
            raise UserError("The test split was opened before in this run; it is opened once, at the end.")
        split, self._split = self._split, None
        return split


@dataclasses.dataclass(frozen=True, eq=False)
class RawDataset:
    """A data set as it is published.

    Attributes:
      train: training pictures.
      test: test pictures.
      classes: their names.
      valid: validation pictures; None: they are held out of the training ones.
      skipped: files that could not be read and were left out, as `data.on_error` has it.
    """

    train: Split
    test: Split
    classes: tuple[str, ...]
    valid: Split | None = None
    skipped: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class DataSplits:
    """The splits of a run and what they know about themselves; `unlabelled` is None where none were asked for.

    `skipped` are the files that were left out, because they could not be read.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    valid: Split
    test: HeldOutSplit
    duplicates: dict[str, int]
    unlabelled: UnlabelledImages | None = None
    skipped: tuple[str, ...] = ()

    def describe(self) -> dict:
        """Name, classes, [H, W, C] of a picture, size and fingerprint per split, and pictures in two splits."""
        splits = {"train": self.train, "unlabelled": self.unlabelled, "valid": self.valid}
        return {
            "name": self.name,
            "classes": list(self.classes),
            "image_shape": list(self.train.images.shape[1:]),
            **{k: {"fingerprint": s.fingerprint, "size": len(s)} for k, s in splits.items() if s is not None},
            "test": {"fingerprint": self.test.fingerprint, "size": self.test.size},
            "duplicates": dict(self.duplicates),
            **({"skipped": list(self.skipped)} if self.skipped else {}),
        }


def _fingerprint(images: np.ndarray, *more: np.ndarray) -> str:
    digest = hashlib.sha256(repr(images.shape).encode())
    for array in (images, *more):
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def _image_hashes(images: np.ndarray) -> list[bytes]:
    return [hashlib.blake2b(np.ascontiguousarray(i), digest_size=16).digest() for i in images]
