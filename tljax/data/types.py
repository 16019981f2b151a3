"""What the data package hands on: splits of pictures with labels, and a test split that opens once."""

from __future__ import annotations

import dataclasses
import functools
import hashlib

import numpy as np

from tljax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Pictures as uint8 [N, H, W, C] (C is 1 or 3) and labels as int32 [N]."""

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self):
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or len(self.images) != len(self.labels):
            raise ValueError(f"not a split: {self.images.dtype}{self.images.shape}, {self.labels.shape}")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> Split:
        """The split with only these rows, in this order."""
        return Split(np.ascontiguousarray(self.images[indices]), self.labels[indices].astype(np.int32))

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over shape, pictures and labels in their order."""
        return _fingerprint(self.images, self.labels.astype("<i4"))

    @functools.cached_property
    def picture_hashes(self) -> list[bytes]:
        """One hash per picture; equal pictures have equal hashes."""
        return _picture_hashes(self.images)


class Unlabelled:
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
    def picture_hashes(self) -> list[bytes]:
        """One hash per picture; equal pictures have equal hashes."""
        return _picture_hashes(self.images)


class SealedSplit:
    """A test split: its size and fingerprint are free to see, its pictures come out once."""

    def __init__(self, split: Split):
        self._split: Split | None = split
        self.size, self.fingerprint = len(split), split.fingerprint

    def resealed(self) -> SealedSplit:
        """The same split, for another run to open once."""
        if self._split is None:
            raise ValueError("opened already")
        return SealedSplit(self._split)

    def open(self) -> Split:
        """Hands out the split, the first time only."""
        if self._split is None:
            raise UserError("The test split was opened before in this run; it is opened once, at the end.")
        split, self._split = self._split, None
        return split


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A data set as it is published: training and test pictures and the names of the classes."""

    train: Split
    test: Split
    classes: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """The splits of a run and what they know about themselves; `unlabelled` is None where none were asked for."""

    name: str
    classes: tuple[str, ...]
    train: Split
    valid: Split
    test: SealedSplit
    shared_pictures: dict[str, int]
    unlabelled: Unlabelled | None = None

    def describe(self) -> dict:
        """Name, classes, [H, W, C] of a picture, size and fingerprint per split, and pictures in two splits."""
        splits = {"train": self.train, "unlabelled": self.unlabelled, "valid": self.valid}
        return {
            "name": self.name,
            "classes": list(self.classes),
            "picture": list(self.train.images.shape[1:]),
            **{k: {"fingerprint": s.fingerprint, "size": len(s)} for k, s in splits.items() if s is not None},
            "test": {"fingerprint": self.test.fingerprint, "size": self.test.size},
            "shared_pictures": dict(self.shared_pictures),
        }


def _fingerprint(images: np.ndarray, *more: np.ndarray) -> str:
    digest = hashlib.sha256(repr(images.shape).encode())
    for array in (images, *more):
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def _picture_hashes(images: np.ndarray) -> list[bytes]:
    return [hashlib.blake2b(np.ascontiguousarray(i), digest_size=16).digest() for i in images]
