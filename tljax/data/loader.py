"""Batches: an endless shuffled stream for training, padded ones in order for evaluation."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import grain.python as grain
import numpy as np

from tljax.data.types import Split


class TrainBatches:
    """Element i is batch i, gathered in one go; a pure function of (seed, i), so any position can be resumed.

    Epochs' permutations are laid end to end and cut into full batches: every picture is seen equally often, no
    batch is short, and BatchNorm never sees padding.
    """

    def __init__(self, split: Split, batch_size: int, seed: Sequence[int], steps: int):
        self.split, self.batch_size, self.seed, self.steps = split, batch_size, seed, steps
        # The two epochs that a batch can straddle; small batches of a large set then draw each permutation once.
        self._permutation = functools.lru_cache(maxsize=2)(self._draw)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        n = len(self.split)
        places = np.arange(index * self.batch_size, (index + 1) * self.batch_size)
        epochs = places // n
        rows = np.concatenate([self._permutation(int(e))[places[epochs == e] % n] for e in np.unique(epochs)])
        return {"image": self.split.images[rows], "label": self.split.labels[rows]}

    def _draw(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([*self.seed, epoch]).permutation(len(self.split))


def train_batches(split: Split, batch_size: int, seed: Sequence[int], steps: int) -> grain.DatasetIterator:
    """A Grain iterator over `steps` batches; its `get_state` and `set_state` are the data position."""
    source = grain.MapDataset.source(TrainBatches(split, batch_size, seed, steps))
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
