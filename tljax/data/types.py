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
        digest = hashlib.sha256(repr(self.images.shape).encode())
        digest.update(np.ascontiguousarray(self.images))
        digest.update(np.ascontiguousarray(self.labels.astype("<i4")))
        return digest.hexdigest()

    @functools.cached_property
    def picture_hashes(self) -> list[bytes]:
        """One hash per picture; equal pictures have equal hashes."""
        return [hashlib.blake2b(np.ascontiguousarray(i), digest_size=16).digest() for i in self.images]


class SealedSplit:
    """A test split: its size and fingerprint are free to see, its pictures come out once."""

    def __init__(self, split: Split):
        self._split: Split | None = split
        self.size, self.fingerprint = len(split), split.fingerprint

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
    """The three splits of a run and what they know about themselves."""

    name: str
    classes: tuple[str, ...]
    train: Split
    valid: Split
    test: SealedSplit
    shared_pictures: dict[str, int]

    def describe(self) -> dict:
        """Name, classes, [H, W, C] of a picture, size and fingerprint per split, and pictures in two splits."""
        return {
            "name": self.name,
            "classes": list(self.classes),
            "picture": list(self.train.images.shape[1:]),
            "train": {"fingerprint": self.train.fingerprint, "size": len(self.train)},
            "valid": {"fingerprint": self.valid.fingerprint, "size": len(self.valid)},
            "test": {"fingerprint": self.test.fingerprint, "size": self.test.size},
            "shared_pictures": dict(self.shared_pictures),
        }
