"""Batches: an endless shuffled stream for training, padded ones in order for evaluation."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence

import grain.python as grain
import numpy as np

from tljax.data.types import Split


class Rows:
    """Element i is which rows batch i takes; a pure function of (seed, stream, i), so any position can be resumed.

    Epochs' permutations are laid end to end and cut into full batches: every row is taken equally often, and no batch
    is short.
    """

    def __init__(self, size: int, batch_size: int, seed: Sequence[int], stream: tuple[int, ...] = ()):
        self.size, self.batch_size, self.seed, self.stream = size, batch_size, seed, stream
        # The two epochs that a batch can straddle; small batches of a large set then draw each permutation once.
        self._permutation = functools.lru_cache(maxsize=2)(self._draw)

    def __getitem__(self, index: int) -> np.ndarray:
        places = np.arange(index * self.batch_size, (index + 1) * self.batch_size)
        epochs = places // self.size
        return np.concatenate([self._permutation(int(e))[places[epochs == e] % self.size] for e in np.unique(epochs)])

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
    ):
        sizes = {name: len(array) for name, array in arrays.items()}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"not equally long: {sizes}")
        self.steps = steps
        self.streams = [(dict(arrays), Rows(next(iter(sizes.values())), batch_size, seed))]
        if unlabelled is not None:
            images, count = unlabelled
            # Behind the epoch, and not 0, which NumPy takes for nothing at a seed's end: no other epoch has this seed.
            self.streams.append(({"unlabelled": images}, Rows(len(images), count, seed, stream=(1,))))

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
) -> grain.DatasetIterator:
    """A Grain iterator over `steps` batches; its `get_state` and `set_state` are the data position.

    Args:
      arrays: equally long, `image` and `label` for instance; a batch has the same rows of each, under the same names.
      batch_size: rows.
      seed: decides the order, together with a batch's index.
      steps: batches.
      unlabelled: pictures [N, H, W, C] and how many of them a batch has besides, under `unlabelled`. Their order is
        independent of that of the arrays.
    """
    source = grain.MapDataset.source(TrainBatches(arrays, batch_size, seed, steps, unlabelled))
    # No reader threads: a batch is one gather from memory, and on few cores threads only cost.
    return iter(source.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))


def eval_batches(split: Split, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches in order, the last one padded with zeros; `mask` is 1 for real rows."""
    for start in range(0, len(split), batch_size):
        images, labels = split.images[start : start + batch_size], split.labels[start : start + batch_size]
        pad = batch_size - len(labels)
        yield {
            "image": np.pad(images, [(0, pad), (0, 0), (0, 0), (0, 0)]),
            "label": np.pad(labels, (0, pad)),
            "mask": np.pad(np.ones(len(labels), np.float32), (0, pad)),
        }
