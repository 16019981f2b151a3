"""Who stands in which split: class subsets, stratified nested label budgets, the rest without labels, and hygiene."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable

import numpy as np

from tljax.config import DataConfig
from tljax.data.dataset import DataSplits, HeldOutSplit, RawDataset, Split, UnlabelledImages
from tljax.errors import UserError


def make_splits(source: RawDataset, config: DataConfig, seed: int) -> DataSplits:
    """Cuts a source into the run's splits.

    The test and validation pictures depend on the source alone, so that runs with different seeds are held
    against the same ones; `seed` draws which training pictures are labelled, and which of the others are kept
    without their labels.

    Raises:
      UserError: a class that there is not, or more pictures wanted than there are.
    """
    keep, budget = config.classes or tuple(range(len(source.classes))), config.labels_per_class
    unknown = [c for c in keep if not 0 <= c < len(source.classes)]
    if unknown:
        raise UserError(f"data.classes names {unknown[0]}, but the classes are 0..{len(source.classes) - 1}.")
    if source.train.labels.ndim > 1:
        return _make_scenes(source, config, seed, keep)
    if config.num_train is not None:
        raise UserError("data.num_train is for masks and boxes: of pictures with a class set data.labels_per_class.")
    # Rows are drawn by the source's own labels, so that leaving a class out does not move the others.
    train, test = (s.select(np.flatnonzero(np.isin(s.labels, keep))) for s in (source.train, source.test))
    if config.split == "first_per_class":
        for split in (train, test):
            _check_budget(budget, split, keep, source.classes)
        labelled, _ = _first(train.labels, budget)
        held_out, rest = _first(test.labels, budget)
        valid, test = test.select(held_out), test.select(rest)
        if not len(test):
            raise UserError(f"data.labels_per_class={budget} leaves no test pictures behind the validation ones.")
    else:
        share = config.valid_fraction
        held_out, rest = stratified_sample(train.labels, lambda n: max(1, round(n * share)), key="validation")
        train, valid = train.select(rest), train.select(held_out)
        labelled = np.arange(len(train))
        if budget is not None:
            _check_budget(budget, train, keep, source.classes)
            labelled = few_shot_indices(train.labels, budget, seed)
    unlabelled = _without_labels(train.images, labelled, config, seed)
    train, valid, test = (_relabel(split, keep) for split in (train.select(labelled), valid, test))
    return _data(source, config, keep, train, valid, test, unlabelled)


def _make_scenes(source: RawDataset, config: DataConfig, seed: int, keep: tuple[int, ...]) -> DataSplits:
    """`make_data` of pictures that have no class of their own, drawn as if all were of one."""
    if config.labels_per_class is not None or config.split != "fraction":
        raise UserError("data.labels_per_class and data.split are for classification: here set data.num_train.")
    train, valid, test = source.train, source.valid, source.test
    if valid is None:
        one = np.zeros(len(train), np.int32)
        held_out, rest = stratified_sample(one, lambda n: max(1, round(n * config.valid_fraction)), key="validation")
        train, valid = train.select(rest), train.select(held_out)
    if config.num_train is not None and config.num_train > len(train):
        raise UserError(f"data.num_train={config.num_train}, but there are only {len(train)} training pictures.")
    labelled = few_shot_indices(np.zeros(len(train), np.int32), config.num_train or len(train), seed)
    unlabelled = _without_labels(train.images, labelled, config, seed)
    train, valid, test = (_keep_objects(split, keep, source) for split in (train.select(labelled), valid, test))
    return _data(source, config, keep, train, valid, test, unlabelled)


def _data(source: RawDataset, config: DataConfig, keep: tuple[int, ...], train, valid, test, unlabelled) -> DataSplits:
    splits = {"train": train, "unlabelled": unlabelled, "valid": valid, "test": test}
    shared = count_duplicates({name: split for name, split in splits.items() if split is not None})
    names = tuple(source.classes[c] for c in keep)
    return DataSplits(config.name, names, train, valid, HeldOutSplit(test), shared, unlabelled, source.skipped)


def _keep_objects(split: Split, keep: tuple[int, ...], source: RawDataset) -> Split:
    """A split with the boxes of some classes alone, in their new numbers."""
    if keep == tuple(range(len(source.classes))):
        return split
    if split.boxes is None:
        raise UserError("data.classes is for classification and detection: every pixel of a mask has some class.")
    # Behind the last class stands -1, where labels of -1 find it, too.
    new = np.full(len(source.classes) + 1, -1, np.int32)
    new[list(keep)] = np.arange(len(keep))
    return dataclasses.replace(split, labels=new[split.labels])


def stratified_sample(labels: np.ndarray, count: Callable[[int], int], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Draws `count(n)` of the n rows of each class at random, by `key` alone.

    Returns:
      Indices of the drawn rows and of the others, each in ascending order.
    """
    drawn = np.zeros(len(labels), bool)
    for c in np.unique(labels):
        order = _order(labels, c, key)
        drawn[order[: count(len(order))]] = True
    return np.flatnonzero(drawn), np.flatnonzero(~drawn)


def few_shot_indices(labels: np.ndarray, budget: int, seed: int) -> np.ndarray:
    """Indices of `budget` rows of each class: stratified, and nested across budgets for one seed."""
    return stratified_sample(labels, lambda _: budget, key=f"labels {seed}")[0]


def count_duplicates(splits: dict[str, Split | UnlabelledImages]) -> dict[str, int]:
    """For each pair of splits, how many pictures of the second also stand in the first, by content."""
    names = list(splits)
    known = {name: set(split.image_hashes) for name, split in splits.items()}
    return {
        f"{a}/{b}": sum(h in known[a] for h in splits[b].image_hashes)
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    }


def _without_labels(images: np.ndarray, labelled: np.ndarray, config: DataConfig, seed: int) -> UnlabelledImages | None:
    """`data.unlabelled` of the pictures that are not labelled, drawn and ordered by chance, whatever their classes."""
    if config.unlabelled == 0:
        return None
    rest = np.setdiff1d(np.arange(len(images)), labelled)
    wanted = len(rest) if config.unlabelled == -1 else config.unlabelled
    if not 0 < wanted <= len(rest):
        field = "labels_per_class" if config.num_train is None else "pictures"
        raise UserError(
            f"data.unlabelled={config.unlabelled}, but data.{field}={getattr(config, field)} leaves "
            f"{len(rest)} training pictures without a label."
        )
    return UnlabelledImages(images[_generator(f"unlabelled {seed}").permutation(rest)[:wanted]])


def _order(labels: np.ndarray, label: int, key: str) -> np.ndarray:
    # A generator per class: leaving a class out does not change what is drawn of the others' rows.
    return _generator(f"{key} {label}").permutation(np.flatnonzero(labels == label))


def _generator(key: str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big"))


def _check_budget(budget: int, split: Split, keep: tuple[int, ...], classes: tuple[str, ...]) -> None:
    for c in keep:
        if (count := int((split.labels == c).sum())) < budget:
            raise UserError(f'data.labels_per_class={budget}, but class "{classes[c]}" has only {count} pictures.')


def _relabel(split: Split, keep: tuple[int, ...]) -> Split:
    new = np.zeros(max(keep) + 1, np.int32)
    new[list(keep)] = np.arange(len(keep))
    return Split(split.images, new[split.labels])


def _first(labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the first `count` rows of each class and of the others, each in ascending order."""
    chosen = np.zeros(len(labels), bool)
    for c in np.unique(labels):
        chosen[np.flatnonzero(labels == c)[:count]] = True
    return np.flatnonzero(chosen), np.flatnonzero(~chosen)
