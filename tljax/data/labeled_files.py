"""Image files with their classes, as sources of image files list them, and their splits."""

from __future__ import annotations

import dataclasses
import hashlib
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tljax.config import DataConfig
from tljax.data.dataset import RawDataset, Split, select_images
from tljax.data.image_store import load_images
from tljax.data.sources.images import ImageFormat
from tljax.errors import UserError

SPLITS = ("train", "valid", "test")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "dev": "valid",
    "test": "test",
    "testing": "test",
}
TEST_FRACTION = 0.2


@dataclasses.dataclass(frozen=True, eq=False)
class LabeledFiles:
    """Image files with one class each, in the order of their names.

    Attributes:
      names: of the files, relative to the folder or as the table gives them, with "/" between folders.
      paths: of the files.
      labels: classes, int32 [N].
      classes: class names.
      splits: "train", "valid" or "test" of each file; None: they are not split yet.
      groups: group of each file, such as the patient; files of a group stay in one split. None: no groups.
      ignored: names of files that are not images, or are hidden.
    """

    names: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    splits: tuple[str, ...] | None = None
    groups: tuple[str, ...] | None = None
    ignored: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def select(self, rows: np.ndarray) -> LabeledFiles:
        """Return the given files, in the given order."""

        def pick(values: Sequence | None) -> tuple | None:
            return None if values is None else tuple(values[i] for i in rows)

        return dataclasses.replace(
            self,
            names=pick(self.names),
            paths=pick(self.paths),
            labels=self.labels[rows],
            splits=pick(self.splits),
            groups=pick(self.groups),
        )


def make_dataset(files: LabeledFiles, image_format: ImageFormat, config: DataConfig) -> RawDataset:
    """Decode all files and split them.

    Args:
      files: of the source.
      image_format: of the decoded images.
      config: the data section of the config.

    Raises:
      UserError: a file is bad and `config.on_error` is "error", or no file is good.
    """
    images, errors = load_images(files.names, files.paths, image_format, config)
    good = np.array([name not in errors for name in files.names], bool)
    if not good.any():
        raise UserError(f"None of the {len(files)} images can be used; first error: {next(iter(errors.values()))}")
    rows = np.flatnonzero(good)
    files = files.select(rows)
    assigned = assign_splits(files, config)

    def split(name: str) -> Split:
        chosen = np.flatnonzero(assigned == SPLITS.index(name))
        return Split(select_images(images, rows[chosen]), files.labels[chosen])

    return RawDataset(
        train=split("train"),
        test=split("test"),
        classes=files.classes,
        valid=split("valid"),
        skipped=tuple(errors),
        ignored=files.ignored,
        resize=image_format.resize,
    )


def assign_splits(files: LabeledFiles, config: DataConfig) -> np.ndarray:
    """Return the split of each file, an index into `SPLITS`, int [N].

    A split that the source lacks is held out of its training images: `test_fraction` of them for testing, then
    `valid_fraction` of the others for validation. Of each class, the files whose names have the smallest hashes are
    held out: the splits do not depend on the order of the files, and most files keep theirs when others are added. With
    groups, whole groups are held out, so that the shares of each class come close to the fractions.

    Args:
      files: sorted by name or not.
      config: the data section of the config.

    Raises:
      UserError: a group is in two splits of the source, or `test_fraction` is set for a source with a test split.
    """
    assigned = np.zeros(len(files), np.int64)
    given = set(files.splits or ())
    if files.splits is not None:
        _check_groups(files)
        assigned = np.array([SPLITS.index(name) for name in files.splits], np.int64)
    if "test" in given and config.test_fraction is not None:
        raise UserError("data.test_fraction has no effect: the source has a test split of its own.")
    shares = {
        "test": 0.0 if "test" in given else config.test_fraction or TEST_FRACTION,
        "valid": 0.0 if "valid" in given else config.valid_fraction,
    }
    rows = np.flatnonzero(assigned == 0)
    labels = files.labels[rows]
    names = [files.names[i] for i in rows]
    if files.groups is None:
        assigned[rows] = _split_files(names, labels, shares)
    else:
        assigned[rows] = _split_groups([files.groups[i] for i in rows], labels, shares)
    return assigned


def hash_order(names: Sequence[str], key: str) -> np.ndarray:
    """Return the indices of names in the order of their hashes, which is the same on every machine.

    Args:
      names: without repetition.
      key: part of each hashed text.
    """
    # macOS stores file names decomposed: é is e and an accent.
    texts = [f"{key}/{unicodedata.normalize('NFC', name)}" for name in names]
    digests = [hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest() for text in texts]
    return np.array(sorted(range(len(names)), key=lambda i: (digests[i], names[i])), np.int64)


def _split_files(names: Sequence[str], labels: np.ndarray, shares: dict[str, float]) -> np.ndarray:
    """Hold out files of each class, at least one for validation; a single file is for training."""
    assigned = np.zeros(len(names), np.int64)
    order = hash_order(names, "split")
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        count = len(rows)
        num_test = min(round(shares["test"] * count), max(0, count - 2))
        num_valid = 0
        if shares["valid"]:
            rest = count - num_test
            num_valid = min(max(1, round(shares["valid"] * rest)), rest - 1)
        assigned[rows[:num_test]] = SPLITS.index("test")
        assigned[rows[num_test : num_test + num_valid]] = SPLITS.index("valid")
    return assigned


def _split_groups(groups: Sequence[str], labels: np.ndarray, shares: dict[str, float]) -> np.ndarray:
    """Hold out whole groups.

    First each class gets a group in every split, as far as it has so many: classes of few groups first, and of their
    groups the one whose share of the class is closest to the split's. The others follow by size; each goes to the split
    that comes closest to its shares of all classes.
    """
    names, index = np.unique(np.array(groups, object), return_inverse=True)
    counts = np.zeros((len(names), int(labels.max(initial=0)) + 1))
    np.add.at(counts, (index, labels), 1)
    class_shares = counts / np.maximum(counts.sum(0), 1)
    order = hash_order(list(names), "group")
    order = order[np.argsort(-counts[order].sum(1), kind="stable")]
    valid = (1 - shares["test"]) * shares["valid"]
    targets = np.array([1 - shares["test"] - valid, valid, shares["test"]])
    filled = np.zeros((len(SPLITS), counts.shape[1]))
    assigned = np.full(len(names), -1)

    def assign(group: int, split: int) -> None:
        assigned[group] = split
        filled[split] += class_shares[group]

    for label in np.argsort((counts > 0).sum(0), kind="stable"):
        for split in np.flatnonzero(targets):
            free = order[(counts[order, label] > 0) & (assigned[order] < 0)]
            if len(free) and not filled[split, label]:
                assign(free[np.argmin(np.abs(class_shares[free, label] - targets[split]))], int(split))
    for group in order[assigned[order] < 0]:
        missing = targets[:, None] - filled
        gain = (class_shares[group] * (2 * missing - class_shares[group])).sum(1)  # of the squared distance
        assign(group, int(np.argmax(np.where(targets > 0, gain, -np.inf))))
    return assigned[index]


def _check_groups(files: LabeledFiles) -> None:
    """Raise UserError if a group is in two splits of the source."""
    splits: dict[str, str] = {}
    for group, split in zip(files.groups or (), files.splits or (), strict=False):
        if splits.setdefault(group, split) != split:
            raise UserError(
                f'The group "{group}" is in the splits {splits[group]} and {split}: remove the column of splits or '
                "that of groups (data.options)."
            )
