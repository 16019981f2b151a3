"""How the batches of a phase reach the device: all arrays live there if they fit, else batches come in blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tljax.data.loader import train_batches
from tljax.distributed.mesh import DeviceMesh

# Data takes at most this share of the device's memory, and at most so many bytes are on their way to it at once.
SHARE, BLOCK_BYTES = 0.3, 1 << 26
# Steps of one program; further ones are another call of it.
MAX_STEPS_PER_CALL = 512


class BatchStream:
    """The batches of a phase, in blocks of steps.

    If all arrays fit on the device, they are put there once, as `data`, and a block has the rows of each batch,
    [steps, B]. Otherwise `data` is empty, and a block has the batches themselves, [steps, B, ...], which are gathered
    while the device computes the block before. Either way a block has room for `max_steps` steps.

    Args:
      arrays: equally long; of `image`, each image once, of the others maybe several views of it.
      rows: from `row_batches`: which rows each batch has.
      mesh: the devices.
      max_steps: of a block.
    """

    def __init__(
        self, arrays: Mapping[str, np.ndarray], rows: Any, mesh: DeviceMesh, max_steps: int = MAX_STEPS_PER_CALL
    ):
        self._rows = rows
        self._arrays = dict(arrays)
        self._mesh = mesh
        fits = sum(x.nbytes for x in self._arrays.values()) <= SHARE * mesh.device_memory()
        self.data = mesh.put(self._arrays) if fits else {}
        self.max_steps = max_steps
        if not fits:
            batch_size = len(self._peek()["row"])
            batch_bytes = sum(x.nbytes // len(x) for x in self._arrays.values()) * batch_size
            self.max_steps = min(max_steps, max(2, BLOCK_BYTES // batch_bytes))

    @property
    def on_device(self) -> bool:
        """Whether the arrays live on the device."""
        return bool(self.data)

    def next_block(self, steps: int) -> dict[str, jax.Array]:
        """Return the next block, of so many steps, padded to `max_steps`."""
        rows = [next(self._rows) for _ in range(steps)]
        block = {name: np.stack([r[name] for r in rows]) for name in rows[0]}
        if not self.on_device:
            block = {
                name: array[block["unlabelled" if name == "unlabelled" else "row"] % len(array)]
                for name, array in self._arrays.items()
            }
        return self._mesh.put_steps(jax.tree.map(self._pad, block))

    @property
    def position(self) -> Any:
        """Where the next block starts, for a checkpoint."""
        return self._rows.get_state()

    def seek(self, position: Any) -> None:
        """Continue from a checkpoint's position."""
        self._rows.set_state(position)

    def _peek(self) -> dict[str, np.ndarray]:
        position = self._rows.get_state()
        batch = next(self._rows)
        self._rows.set_state(position)
        return batch

    def _pad(self, block: np.ndarray) -> np.ndarray:
        if len(block) == self.max_steps:
            return block
        padded = np.zeros((self.max_steps, *block.shape[1:]), block.dtype)
        padded[: len(block)] = block
        return padded


def row_batches(
    size: int,
    batch_size: int,
    seed: Sequence[int],
    steps: int,
    unlabelled: tuple[int, int] | None = None,
    views: int = 1,
) -> Any:
    """Return the iterator over the rows of each batch of a phase: `row` [B] and, with `unlabelled`, those of these.

    Args:
      size: number of rows, those of all views together.
      batch_size: rows of a batch.
      seed: of the order.
      steps: length of the phase.
      unlabelled: how many unlabelled images there are, and how many of them a batch has.
      views: how many times the rows have every image.
    """
    rows = {"row": np.arange(size, dtype=np.int32)}
    extra = None if unlabelled is None else (np.arange(unlabelled[0], dtype=np.int32), unlabelled[1])
    return train_batches(rows, batch_size, seed, steps, extra, max(1, views))
