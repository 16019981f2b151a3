"""Transfer of batches to the device: all arrays at once if they fit, else in blocks of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tljax.data.dataset import ImageRows, Images
from tljax.data.loader import train_batches
from tljax.distributed.mesh import DeviceMesh

# Arrays stay on the device if they take at most this share of its memory.
MAX_MEMORY_FRACTION = 0.3
# Maximum size of a block of batches that is copied to the device.
BLOCK_BYTES = 1 << 26
# Maximum number of steps in one call of the compiled program.
MAX_STEPS_PER_CALL = 512


class BatchStream:
    """The batches of a phase, in blocks of steps.

    If all arrays fit on the device, they are put there once, as `data`, and a block contains the row indices of each
    batch, [steps, B]. Otherwise `data` is empty and a block contains the batches themselves, [steps, B, ...], which are
    gathered while the device computes the previous block. Arrays of a block always have length `max_steps`.

    Args:
      arrays: arrays [N, ...] by name; with views of N images, arrays other than `image` may be [views * N, ...].
      rows: iterator over the row indices of each batch, from `row_batches`.
      mesh: the devices.
      max_steps: maximum number of steps in a block.

    Attributes:
      data: the arrays on the device, or {}.
      max_steps: maximum number of steps in a block, less than the argument if blocks would be too large.
    """

    def __init__(self, arrays: Mapping[str, Images], rows: Any, mesh: DeviceMesh, max_steps: int = MAX_STEPS_PER_CALL):
        self._rows = rows
        self._arrays = dict(arrays)
        self._mesh = mesh
        on_disk = {name: x for name, x in self._arrays.items() if isinstance(x, ImageRows)}
        fits = sum(x.nbytes for x in self._arrays.values()) <= MAX_MEMORY_FRACTION * mesh.device_memory()
        if on_disk and mesh.is_cpu:
            fits = False  # the images are on disk because they would take too much memory of the host
        self.data = mesh.put(self._arrays | {name: x[:] for name, x in on_disk.items()}) if fits else {}
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
        """Return the next block of `steps` batches, padded to `max_steps`."""
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
        """Position of the next block, as stored in checkpoints."""
        return self._rows.get_state()

    def seek(self, position: Any) -> None:
        """Continue at a position from a checkpoint."""
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
    """Return an iterator over the row indices of each batch: `row` [B], and `unlabelled` [U] if there are such images.

    Args:
      size: number of rows, including all views.
      batch_size: number of rows per batch.
      seed: seed of the order.
      steps: number of batches.
      unlabelled: number of unlabelled images, and of those per batch.
      views: number of views of each image among the rows.
    """
    rows = {"row": np.arange(size, dtype=np.int32)}
    extra = None if unlabelled is None else (np.arange(unlabelled[0], dtype=np.int32), unlabelled[1])
    return train_batches(rows, batch_size, seed, steps, extra, max(1, views))
