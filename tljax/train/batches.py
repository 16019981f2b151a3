"""How a phase's pictures reach the device: they live there where they fit, else they come block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tljax.data.loader import train_batches
from tljax.distributed.mesh import DeviceMesh

# Of the device's memory, at most this share is data, and at most so many bytes are on their way to it at once.
SHARE, BLOCK_BYTES = 0.3, 1 << 26
# Steps of one program; further ones are another call of it.
MAX_STEPS_PER_CALL = 512


class BatchStream:
    """The batches of a phase, in blocks of steps.

    What a block is depends on `resident`. Where all arrays fit on the device, they are put there once, and a block is
    the rows of each batch, [steps, B]. Else a block is the batches themselves, [steps, B, ...], gathered here while the
    device is busy with the one before. Either way it has room for `steps` steps, of which the first ones count.

    Args:
      arrays: equally long; those of `image` have each picture once, others maybe several `views` of it.
      unlabelled: pictures and how many a batch has of them, or None.
      batch_size: rows.
      seed: of the order.
      steps: length of the phase.
      views: how many times the longest arrays have every picture.
      mesh: the devices.
      most: steps of a block.
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        unlabelled: tuple[np.ndarray, int] | None,
        batch_size: int,
        seed: Sequence[int],
        steps: int,
        views: int,
        mesh: DeviceMesh,
        most: int = MAX_STEPS_PER_CALL,
    ):
        views = max(1, views)
        size = max(map(len, arrays.values()))
        numbers = {"row": np.arange(size, dtype=np.int32)}
        also = None if unlabelled is None else (np.arange(len(unlabelled[0]), dtype=np.int32), unlabelled[1])
        self._rows = train_batches(numbers, batch_size, seed, steps, also, views)
        self._arrays = dict(arrays) | ({} if unlabelled is None else {"unlabelled": unlabelled[0]})
        self._mesh, total = mesh, sum(x.nbytes for x in self._arrays.values())
        self.on_device = total <= SHARE * mesh.memory()
        each = sum(x.nbytes // len(x) for x in self._arrays.values()) * batch_size
        fit = MAX_STEPS_PER_CALL if self.on_device else max(2, BLOCK_BYTES // each)
        self.max_steps = min(fit, steps, most)
        self.data = mesh.put(self._arrays) if self.on_device else {}

    def next_block(self, steps: int) -> dict[str, jax.Array]:
        """The next block, of so many steps."""
        rows = [next(self._rows) for _ in range(steps)]
        block = {name: np.stack([r[name] for r in rows]) for name in rows[0]}
        if not self.on_device:
            block = {
                name: array[block["unlabelled" if name == "unlabelled" else "row"] % len(array)]
                for name, array in self._arrays.items()
            }
        return self._mesh.put_steps(jax.tree.map(self._padded, block))

    @property
    def position(self) -> Any:
        """Where the next block starts, for a checkpoint."""
        return self._rows.get_state()

    def seek(self, position: Any) -> None:
        """Goes on from a checkpoint's position."""
        self._rows.set_state(position)

    def _padded(self, block: np.ndarray) -> np.ndarray:
        if len(block) == self.max_steps:
            return block
        room = np.zeros((self.max_steps, *block.shape[1:]), block.dtype)
        room[: len(block)] = block
        return room
