"""Batches: an endless shuffled stream for training, padded ones in order for evaluation."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence

import grain.python as grain
import numpy as np


class ShuffledIndices:
    """Element i is which rows batch i takes; a pure function of (seed, stream, i), so any position can be resumed.

    With `views`, the rows are those of an array that has all pictures so many times, view after view, and epoch e takes
    view e mod views. Epochs' permutations are laid end to end and cut into full batches: every row is taken equally
    often, and no batch is short.
    """

    def __init__(self, size: int, batch_size: int, seed: Sequence[int], stream: tuple[int, ...] = (), views: int = 1):
        self.size, self.batch_size, self.seed, self.stream, self.views = size, batch_size, seed, stream, views
        # The two epochs that a batch can straddle; small batches of a large set then draw each permutation once.
        self._permutation = functools.lru_cache(maxsize=2)(self._draw)

    def __getitem__(self, index: int) -> np.ndarray:
        places = np.arange(index * self.batch_size, (index + 1) * self.batch_size)
        epochs = places // self.size
        return np.concatenate(
            [
                self._permutation(int(e))[places[epochs == e] % self.size] + int(e) % self.views * self.size
                for e in np.unique(epochs)
            ]
        )

    def _draw(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([*self.seed, epoch, *self.stream]).permutation(self.size)


class TrainBatches:
    """Element i is batch i: a row of each array, gathered in one go, and unlabelled pictures in an order of their own.

    BatchNorm never sees padding, since no batch is short.
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        batch_size: int,
        seed: Sequence[int],
        steps: int,
        unlabelled: tuple[np.ndarray, int] | None = None,
        views: int = 1,
    ):
        sizes = {name: len(array) for name, array in arrays.items()}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"not equally long: {sizes}")
        self.steps = steps
        self.streams = [
            (dict(arrays), ShuffledIndices(next(iter(sizes.values())) // views, batch_size, seed, views=views))
        ]
        if unlabelled is not None:
            images, count = unlabelled
            # Behind the epoch, and not 0, which NumPy takes for nothing at a seed's end: no other epoch has this seed.
            self.streams.append(({"unlabelled": images}, ShuffledIndices(len(images), count, seed, stream=(1,))))

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        gathered = ((arrays, rows[index]) for arrays, rows in self.streams)
        return {name: array[rows] for arrays, rows in gathered for name, array in arrays.items()}


def train_batches(
    arrays: Mapping[str, np.ndarray],
    batch_size: int,
    seed: Sequence[int],
    steps: int,
    unlabelled: tuple[np.ndarray, int] | None = None,
    views: int = 1,
) -> grain.DatasetIterator:
    """A Grain iterator over `steps` batches; its `get_state` and `set_state` are the data position.

    Args:
      arrays: equally long, `image` and `label` for instance; a batch has the same rows of each, under the same names.
      batch_size: rows.
      seed: decides the order, together with a batch's index.
      steps: batches.
      unlabelled: pictures [N, H, W, C] and how many of them a batch has besides, under `unlabelled`. Their order is
        independent of that of the arrays.
      views: how many times the arrays have every picture, view after view; an epoch takes the rows of one of them.
    """
    source = grain.MapDataset.source(TrainBatches(arrays, batch_size, seed, steps, unlabelled, views))
    # No reader threads: a batch is one gather from memory, and on few cores threads only cost.
    return iter(source.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))


def eval_batches(arrays: Mapping[str, np.ndarray], batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches of equally long arrays in order, the last one padded with zeros; `mask` is 1 for real rows."""
    size = len(next(iter(arrays.values())))
    for start in range(0, size, batch_size):
        rows = {name: array[start : start + batch_size] for name, array in arrays.items()}
        rows["mask"] = np.ones(min(batch_size, size - start), np.float32)
        pad = batch_size - len(rows["mask"])
        yield {name: np.pad(x, [(0, pad)] + [(0, 0)] * (x.ndim - 1)) if pad else x for name, x in rows.items()}
