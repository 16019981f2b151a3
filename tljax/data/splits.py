"""Splitting of a dataset: class subsets, stratified nested label budgets, unlabeled images, and duplicates."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable

import numpy as np

from tljax.config import DataConfig
from tljax.data.dataset import DataSplits, HeldOutSplit, Images, RawDataset, Split, UnlabelledImages, select_images
from tljax.errors import UserError


def make_splits(source: RawDataset, config: DataConfig, seed: int) -> DataSplits:
    """Split a dataset into train, validation, test and unlabeled images.

    The test and validation images depend on the dataset alone, so that runs with different seeds are evaluated on the
    same images. The seed selects the labeled training images and the unlabeled ones.

    Args:
      source: the dataset.
      config: the data section of the config.
      seed: of the selection.

    Raises:
      UserError: a class does not exist, or the dataset has too few images.
    """
    keep = config.classes or tuple(range(len(source.classes)))
    budget = config.labels_per_class
    unknown = [c for c in keep if not 0 <= c < len(source.classes)]
    if unknown:
        raise UserError(f"data.classes has {unknown[0]}, but the classes are 0..{len(source.classes) - 1}.")
    if source.train.labels.ndim > 1:
        return _make_dense_splits(source, config, seed, keep)
    if config.num_train is not None:
        raise UserError("data.num_train is for masks and boxes: for classification set data.labels_per_class.")
    if source.valid is not None and config.split == "first_per_class":
        raise UserError("data.split='first_per_class' is for a source without validation images of its own.")
    # Rows are drawn by the original labels, so that leaving a class out does not change the rows of other classes.
    train, test = (s.select(np.flatnonzero(np.isin(s.labels, keep))) for s in (source.train, source.test))
    if config.split == "first_per_class":
        assert budget is not None  # tljax.config checks it
        _check_budget(budget, train, keep, source.classes)
        labeled, _ = _first_per_class(train.labels, budget)
        valid, test = _split_test_files(test, budget, keep, source.classes)
    else:
        if source.valid is None:
            share = config.valid_fraction
            held_out, rest = stratified_sample(train.labels, lambda n: max(1, round(n * share)), key="validation")
            train, valid = train.select(rest), train.select(held_out)
        else:
            valid = source.valid.select(np.flatnonzero(np.isin(source.valid.labels, keep)))
            _check_classes(train, valid, keep, source.classes)
        labeled = np.arange(len(train))
        if budget is not None:
            _check_budget(budget, train, keep, source.classes)
            labeled = few_shot_indices(train.labels, budget, seed)
    unlabelled = _unlabelled_images(train.images, labeled, config, seed)
    splits = {"train": train.select(labeled), "valid": valid, "test": test}
    return _to_data_splits(source, config, keep, {k: _relabel(s, keep) for k, s in splits.items()}, unlabelled)


def _split_test_files(test: Split, budget: int, keep: tuple[int, ...], classes: tuple[str, ...]) -> tuple[Split, Split]:
    """Return the first `budget` test images of each class, for validation, and the others."""
    _check_budget(budget, test, keep, classes)
    held_out, rest = _first_per_class(test.labels, budget)
    if not len(rest):
        raise UserError(f"data.labels_per_class={budget} leaves no test images after the validation images.")
    return test.select(held_out), test.select(rest)


def _make_dense_splits(source: RawDataset, config: DataConfig, seed: int, keep: tuple[int, ...]) -> DataSplits:
    """`make_splits` for masks and boxes: images have no class, so they are sampled as if all had the same one."""
    if config.labels_per_class is not None or config.split != "fraction":
        raise UserError("data.labels_per_class and data.split are for classification: here set data.num_train.")
    train, valid = source.train, source.valid
    if valid is None:
        same_class = np.zeros(len(train), np.int32)
        held_out, rest = stratified_sample(
            same_class, lambda n: max(1, round(n * config.valid_fraction)), key="validation"
        )
        train, valid = train.select(rest), train.select(held_out)
    if config.num_train is not None and config.num_train > len(train):
        raise UserError(f"data.num_train={config.num_train}, but there are only {len(train)} training images.")
    labeled = few_shot_indices(np.zeros(len(train), np.int32), config.num_train or len(train), seed)
    unlabelled = _unlabelled_images(train.images, labeled, config, seed)
    splits = {"train": train.select(labeled), "valid": valid, "test": source.test}
    splits = {name: _keep_objects(split, keep, source) for name, split in splits.items()}
    return _to_data_splits(source, config, keep, splits, unlabelled)


def _to_data_splits(
    source: RawDataset,
    config: DataConfig,
    keep: tuple[int, ...],
    splits: dict[str, Split],
    unlabelled: UnlabelledImages | None,
) -> DataSplits:
    train, valid, test = splits["train"], splits["valid"], splits["test"]
    compared = {"train": train, "unlabelled": unlabelled, "valid": valid, "test": test}
    duplicates = count_duplicates({name: images for name, images in compared.items() if images is not None})
    classes = tuple(source.classes[c] for c in keep)
    return DataSplits(
        name=config.name,
        classes=classes,
        train=train,
        valid=valid,
        test=HeldOutSplit(test),
        duplicates=duplicates,
        unlabelled=unlabelled,
        skipped=source.skipped,
        ignored=source.ignored,
        resize=source.resize,
    )


def _keep_objects(split: Split, keep: tuple[int, ...], source: RawDataset) -> Split:
    """Return a split with only the boxes of the classes `keep`, renumbered in this order."""
    if keep == tuple(range(len(source.classes))):
        return split
    if split.boxes is None:
        raise UserError("data.classes is for classification and detection: every pixel of a mask has some class.")
    # The last element is -1, which is also what the padding label -1 indexes.
    new_labels = np.full(len(source.classes) + 1, -1, np.int32)
    new_labels[list(keep)] = np.arange(len(keep))
    return dataclasses.replace(split, labels=new_labels[split.labels])


def stratified_sample(labels: np.ndarray, count: Callable[[int], int], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Sample `count(n)` of the n rows of each class at random.

    Args:
      labels: int [N].
      count: number of rows to sample from a class of n rows.
      key: seed of the sample, as text.

    Returns:
      Indices of the sampled rows and of the other rows, each in ascending order.
    """
    sampled = np.zeros(len(labels), bool)
    for c in np.unique(labels):
        order = _shuffled_rows(labels, c, key)
        sampled[order[: count(len(order))]] = True
    return np.flatnonzero(sampled), np.flatnonzero(~sampled)


def few_shot_indices(labels: np.ndarray, budget: int, seed: int) -> np.ndarray:
    """Return indices of `budget` random rows of each class; for one seed, larger budgets contain smaller ones."""
    return stratified_sample(labels, lambda _: budget, key=f"labels {seed}")[0]


def count_duplicates(splits: dict[str, Split | UnlabelledImages]) -> dict[str, int]:
    """Return for each pair of splits the number of images of the second that also occur in the first, by content."""
    names = list(splits)
    hashes = {name: set(split.image_hashes) for name, split in splits.items()}
    return {
        f"{a}/{b}": sum(h in hashes[a] for h in splits[b].image_hashes)
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    }


def _unlabelled_images(images: Images, labeled: np.ndarray, config: DataConfig, seed: int) -> UnlabelledImages | None:
    """Return `data.unlabelled` of the images that are not labeled, sampled and ordered at random over all classes."""
    if config.unlabelled == 0:
        return None
    rest = np.setdiff1d(np.arange(len(images)), labeled)
    wanted = len(rest) if config.unlabelled == -1 else config.unlabelled
    if not 0 < wanted <= len(rest):
        field = "labels_per_class" if config.num_train is None else "num_train"
        raise UserError(
            f"data.unlabelled={config.unlabelled}, but data.{field}={getattr(config, field)} leaves "
            f"{len(rest)} training images without a label."
        )
    return UnlabelledImages(select_images(images, _generator(f"unlabelled {seed}").permutation(rest)[:wanted]))


def _shuffled_rows(labels: np.ndarray, label: int, key: str) -> np.ndarray:
    # One generator per class: leaving a class out does not change the sample of other classes.
    return _generator(f"{key} {label}").permutation(np.flatnonzero(labels == label))


def _generator(key: str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big"))


def _check_budget(budget: int, split: Split, keep: tuple[int, ...], classes: tuple[str, ...]) -> None:
    for c in keep:
        if (count := int((split.labels == c).sum())) < budget:
            raise UserError(f'data.labels_per_class={budget}, but class "{classes[c]}" has only {count} images.')


def _check_classes(train: Split, valid: Split, keep: tuple[int, ...], classes: tuple[str, ...]) -> None:
    """Raise UserError if a class has no images to train on or to validate on."""
    for c in keep:
        counts = {name: int((s.labels == c).sum()) for name, s in (("train", train), ("valid", valid))}
        if not all(counts.values()):
            empty = "training" if not counts["train"] else "validation"
            raise UserError(
                f'Class "{classes[c]}" has no {empty} images: {counts["train"]} for training and '
                f"{counts['valid']} for validation."
            )


def _relabel(split: Split, keep: tuple[int, ...]) -> Split:
    new_labels = np.zeros(max(keep) + 1, np.int32)
    new_labels[list(keep)] = np.arange(len(keep))
    return Split(split.images, new_labels[split.labels])


def _first_per_class(labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return indices of the first `count` rows of each class and of the other rows, each in ascending order."""
    selected = np.zeros(len(labels), bool)
    for c in np.unique(labels):
        selected[np.flatnonzero(labels == c)[:count]] = True
    return np.flatnonzero(selected), np.flatnonzero(~selected)
