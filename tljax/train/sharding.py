"""One mesh over all devices: batches are split over it, everything else is copied to all of it."""

from __future__ import annotations

import os
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tljax.errors import UserError


class Mesh:
    """The data mesh; the same code runs on one device and on eight."""

    def __init__(self, batch_size: int):
        self.count = jax.device_count()
        if batch_size % self.count:
            raise UserError(
                f"train.batch_size={batch_size} cannot be split over {self.count} devices: take a multiple."
            )
        # Auto axes: under Explicit ones, scatter and permutation fail.
        mesh = jax.make_mesh((self.count,), ("data",), axis_types=(AxisType.Auto,))
        self.batch_sharding = NamedSharding(mesh, PartitionSpec("data"))
        self.block_sharding = NamedSharding(mesh, PartitionSpec(None, "data"))
        self.replicated = NamedSharding(mesh, PartitionSpec())

    def multiple(self, rows: int) -> int:
        """As many rows, or a few more, that all devices get equally many."""
        return -(-rows // self.count) * self.count

    def put_batch(self, batch: Any) -> Any:
        """Splits the leading axis over the devices."""
        return jax.device_put(batch, self.batch_sharding)

    def put_block(self, block: Any) -> Any:
        """Splits the second axis, that of the pictures within each batch, over the devices."""
        return jax.device_put(block, self.block_sharding)

    def put(self, tree: Any) -> Any:
        """Copies to all devices."""
        return jax.device_put(tree, self.replicated)

    def like(self, tree: Any) -> Any:
        """The shapes and types of what `put` would give."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.replicated), tree)

    def memory(self) -> int:
        """Bytes of one device's memory; devices that keep no count are processors, which share the host's."""
        stats = jax.local_devices()[0].memory_stats() or {}
        host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return stats.get("bytes_limit", host // len(jax.local_devices()))
