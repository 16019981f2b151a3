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
    keep, budget = config.classes or tuple(range(len(source.classes))), config.labels_per_class
    unknown = [c for c in keep if not 0 <= c < len(source.classes)]
    if unknown:
        raise UserError(f"data.classes names {unknown[0]}, but the classes are 0..{len(source.classes) - 1}.")
    # Rows are drawn by the source's own labels, so that leaving a class out does not move the others.
    train, test = (s.take(np.flatnonzero(np.isin(s.labels, keep))) for s in (source.train, source.test))
    if config.split == "first_per_class":
        for split in (train, test):
            _check_budget(budget, split, keep, source.classes)
        train, _ = _first(train, budget)
        valid, test = _first(test, budget)
        if not len(test):
            raise UserError(f"data.labels_per_class={budget} leaves no test pictures behind the validation ones.")
    else:
        held_out, rest = per_class(train.labels, lambda n: max(1, round(n * config.valid_fraction)), key="validation")
        train, valid = train.take(rest), train.take(held_out)
        if budget is not None:
            _check_budget(budget, train, keep, source.classes)
            train = train.take(label_budget(train.labels, budget, seed))
    train, valid, test = (_relabel(split, keep) for split in (train, valid, test))
    shared = shared_pictures({"train": train, "valid": valid, "test": test})
    return Data(config.name, tuple(source.classes[c] for c in keep), train, valid, SealedSplit(test), shared)


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


def label_budget(labels: np.ndarray, budget: int, seed: int) -> np.ndarray:
    """Indices of `budget` rows of each class: stratified, and nested across budgets for one seed."""
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


def _check_budget(budget: int, split: Split, keep: tuple[int, ...], classes: tuple[str, ...]) -> None:
    for c in keep:
        if (count := int((split.labels == c).sum())) < budget:
            raise UserError(f'data.labels_per_class={budget}, but class "{classes[c]}" has only {count} pictures.')


def _relabel(split: Split, keep: tuple[int, ...]) -> Split:
    new = np.zeros(max(keep) + 1, np.int32)
    new[list(keep)] = np.arange(len(keep))
    return Split(split.images, new[split.labels])


def _first(split: Split, count: int) -> tuple[Split, Split]:
    """The first `count` rows of each class, and the others."""
    chosen = np.zeros(len(split), bool)
    for c in np.unique(split.labels):
        chosen[np.flatnonzero(split.labels == c)[:count]] = True
    return split.take(np.flatnonzero(chosen)), split.take(np.flatnonzero(~chosen))
