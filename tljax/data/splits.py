"""Who stands in which split: class subsets, stratified nested label budgets, validation, and hygiene."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np

from tljax.config import DataConfig
from tljax.data.types import Data, SealedSplit, Source, Split
from tljax.errors import UserError


def make_data(source: Source, config: DataConfig, seed: int) -> Data:
    """Cuts a source into the run's splits.

    The test and validation pictures depend on the source alone, so that runs with different seeds are held
    against the same ones; `seed` draws which training pictures are labelled.
    """
    train, test = (_keep_classes(s, config.classes, source.classes) for s in (source.train, source.test))
    classes = tuple(source.classes[c] for c in config.classes) or source.classes
    budget = config.labels_per_class
    if config.split == "first_per_class":
        train, _ = _first(train, budget, classes)
        valid, test = _first(test, budget, classes)
        if not len(test):
            raise UserError(f"data.labels_per_class={budget} leaves no test pictures behind the validation ones.")
    else:
        held_out, rest = per_class(train.labels, lambda n: max(1, round(n * config.valid_fraction)), key="validation")
        train, valid = train.take(rest), train.take(held_out)
        if budget is not None:
            train = train.take(label_budget(train.labels, budget, seed, classes))
    splits = {"train": train, "valid": valid, "test": test}
    return Data(config.name, classes, train, valid, SealedSplit(test), shared_pictures(splits))


def per_class(labels: np.ndarray, count: Callable[[int], int], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Draws `count(n)` of the n rows of each class at random, by `key` alone.

    Returns:
      Indices of the drawn rows and of the others, each in ascending order.
    """
    drawn = np.zeros(len(labels), bool)
    for c in np.unique(labels):
        order = _order(labels, c, key)
        drawn[order[: count(len(order))]] = True
    return np.flatnonzero(drawn), np.flatnonzero(~drawn)


def label_budget(labels: np.ndarray, budget: int, seed: int, classes: tuple[str, ...]) -> np.ndarray:
    """Indices of `budget` rows of each class: stratified, and nested across budgets for one seed."""
    counts = np.bincount(labels, minlength=len(classes))
    if counts.min() < budget:
        c = int(counts.argmin())
        raise UserError(
            f'data.labels_per_class={budget}, but class "{classes[c]}" has only {counts[c]} training pictures.'
        )
    return per_class(labels, lambda _: budget, key=f"labels {seed}")[0]


def shared_pictures(splits: dict[str, Split]) -> dict[str, int]:
    """For each pair of splits, how many pictures of the second also stand in the first, by content."""
    names = list(splits)
    known = {name: set(split.picture_hashes) for name, split in splits.items()}
    return {
        f"{a}/{b}": sum(h in known[a] for h in splits[b].picture_hashes)
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    }


def _order(labels: np.ndarray, label: int, key: str) -> np.ndarray:
    # A generator per class: leaving a class out does not change what is drawn of the others' rows.
    seed = int.from_bytes(hashlib.sha256(f"{key} {label}".encode()).digest()[:8], "big")
    return np.random.default_rng(seed).permutation(np.flatnonzero(labels == label))


def _keep_classes(split: Split, keep: tuple[int, ...], classes: tuple[str, ...]) -> Split:
    if not keep:
        return split
    unknown = [c for c in keep if not 0 <= c < len(classes)]
    if unknown:
        raise UserError(f"data.classes names {unknown[0]}, but the classes are 0..{len(classes) - 1}.")
    relabel = np.full(len(classes), -1, np.int32)
    relabel[list(keep)] = np.arange(len(keep))
    labels = relabel[split.labels]
    rows = np.flatnonzero(labels >= 0)
    return Split(split.images[rows], labels[rows])


def _first(split: Split, count: int, classes: tuple[str, ...]) -> tuple[Split, Split]:
    """The first `count` rows of each class, and the others."""
    present = np.bincount(split.labels, minlength=len(classes))
    if present.min() < count:
        c = int(present.argmin())
        raise UserError(f'data.labels_per_class={count}, but class "{classes[c]}" has only {present[c]} pictures.')
    chosen = np.zeros(len(split), bool)
    for c in range(len(classes)):
        chosen[np.flatnonzero(split.labels == c)[:count]] = True
    return split.take(np.flatnonzero(chosen)), split.take(np.flatnonzero(~chosen))
