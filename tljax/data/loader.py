"""Batches: a shuffled stream for training, and padded batches in order for evaluation."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence

import grain.python as grain
import numpy as np

from tljax.data.dataset import Images


class ShuffledIndices:
    """Row indices of each training batch, a pure function of (seed, stream, batch index), so any position can resume.

    The permutations of all epochs are concatenated and cut into full batches: each row is used equally often, and no
    batch is short.

    Args:
      size: number of images.
      batch_size: rows of a batch.
      seed: of the permutations, together with the epoch.
      stream: appended to the seed, so that several streams with the same seed have different orders.
      num_views: number of copies of the dataset in the arrays, one after another; epoch e uses copy e mod num_views.
    """

    def __init__(
        self, size: int, batch_size: int, seed: Sequence[int], stream: tuple[int, ...] = (), num_views: int = 1
    ):
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.stream = stream
        self.num_views = num_views
        # A batch can span two epochs; with both cached, small batches of a large dataset draw each permutation once.
        self._permutation = functools.lru_cache(maxsize=2)(self._draw)

    def __getitem__(self, index: int) -> np.ndarray:
        positions = np.arange(index * self.batch_size, (index + 1) * self.batch_size)
        epochs = positions // self.size
        return np.concatenate(
            [
                self._permutation(int(e))[positions[epochs == e] % self.size] + int(e) % self.num_views * self.size
                for e in np.unique(epochs)
            ]
        )

    def _draw(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([*self.seed, epoch, *self.stream]).permutation(self.size)


class TrainBatches:
    """Random-access training batches: element i has the same rows of all arrays, and unlabeled images if given.

    No batch is padded, so BatchNorm statistics contain no padding.

    Args:
      arrays: as in `train_batches`.
      batch_size: as in `train_batches`.
      seed: as in `train_batches`.
      steps: as in `train_batches`.
      unlabelled: as in `train_batches`.
      num_views: as in `train_batches`.
    """

    def __init__(
        self,
        arrays: Mapping[str, Images],
        batch_size: int,
        seed: Sequence[int],
        steps: int,
        unlabelled: tuple[np.ndarray, int] | None = None,
        num_views: int = 1,
    ):
        sizes = {name: len(array) for name, array in arrays.items()}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"arrays must be equally long: {sizes}")
        size = next(iter(sizes.values())) // num_views
        self.steps = steps
        self.streams = [(dict(arrays), ShuffledIndices(size, batch_size, seed, num_views=num_views))]
        if unlabelled is not None:
            images, count = unlabelled
            # NumPy ignores zeros at the end of a seed: a 1 behind the epoch gives a seed that no labeled epoch has.
            self.streams.append(({"unlabelled": images}, ShuffledIndices(len(images), count, seed, stream=(1,))))

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        streams = ((arrays, indices[index]) for arrays, indices in self.streams)
        return {name: array[rows] for arrays, rows in streams for name, array in arrays.items()}


def train_batches(
    arrays: Mapping[str, Images],
    batch_size: int,
    seed: Sequence[int],
    steps: int,
    unlabelled: tuple[np.ndarray, int] | None = None,
    num_views: int = 1,
) -> grain.DatasetIterator:
    """Return a Grain iterator over shuffled batches; its `get_state` and `set_state` hold the data position.

    Args:
      arrays: equally long arrays by name, for instance `image` and `label`; a batch has the same rows of each.
      batch_size: rows of a batch.
      seed: of the order, together with the epoch.
      steps: number of batches.
      unlabelled: unlabeled images [N, H, W, C] and how many of them each batch has under `unlabelled`. Their order is
        independent of the arrays' order.
      num_views: number of copies of the dataset in the arrays, one after another; an epoch uses one of them.
    """
    source = grain.MapDataset.source(TrainBatches(arrays, batch_size, seed, steps, unlabelled, num_views))
    # No reader threads: a batch is one gather from memory, and with few cores threads slow it down.
    return iter(source.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))


def eval_batches(arrays: Mapping[str, Images], batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield batches of equally long arrays in order, the last one padded with zeros; `mask` is 1 for real rows."""
    size = len(next(iter(arrays.values())))
    for start in range(0, size, batch_size):
        rows = {name: array[start : start + batch_size] for name, array in arrays.items()}
        rows["mask"] = np.ones(min(batch_size, size - start), np.float32)
        pad = batch_size - len(rows["mask"])
        yield {name: np.pad(x, [(0, pad)] + [(0, 0)] * (x.ndim - 1)) if pad else x for name, x in rows.items()}
