"""One mesh over all devices: batches are split over it; leaves are copied to all of it, or each device has a part."""

from __future__ import annotations

import functools
import math
import os
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tljax.errors import UserError

# Leaves with fewer numbers are copied: to gather them takes longer than to read them.
MIN_SHARDED = 1 << 14


class DeviceMesh:
    """The data mesh; the same code runs on one device and on eight.

    Args:
      batch_size: of training, which all devices share equally.
      shard: "none": every device has all leaves; "fsdp": each has a part of the large ones, of their gradients
        and of the optimizer's state, and gathers them where they are used (ZeRO-3, Rajbhandari et al. 2020,
        arXiv:1910.02054; FSDP).
    """

    def __init__(self, batch_size: int, shard: str = "none"):
        self.count, self.shard = jax.device_count(), shard
        if batch_size % self.count:
            raise UserError(
                f"train.batch_size={batch_size} cannot be split over {self.count} devices: take a multiple."
            )
        self.batch_sharding = NamedSharding(_devices(), PartitionSpec("data"))
        self.block_sharding = NamedSharding(_devices(), PartitionSpec(None, "data"))
        self.replicated = NamedSharding(_devices(), PartitionSpec())

    def round_up(self, rows: int) -> int:
        """As many rows, or a few more, that all devices get equally many."""
        return -(-rows // self.count) * self.count

    def put_batch(self, batch: Any) -> Any:
        """Splits the leading axis over the devices."""
        return _put(batch, self.batch_sharding)

    def put_steps(self, block: Any) -> Any:
        """Splits the second axis, that of the pictures within each batch, over the devices."""
        return _put(block, self.block_sharding)

    def put(self, tree: Any) -> Any:
        """Copies to all devices."""
        return _put(tree, self.replicated)

    def put_variables(self, tree: Any) -> Any:
        """Brings leaves, or a state made of them, to where they live."""
        return jax.tree.map(lambda x: _put(x, param_sharding(x.shape, self.shard)), tree)

    def memory(self) -> int:
        """Bytes of one device's memory; devices that keep no count are processors, which share the host's."""
        stats = jax.local_devices()[0].memory_stats() or {}
        host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return stats.get("bytes_limit", host // len(jax.local_devices()))


def _put(tree: Any, sharding: NamedSharding) -> Any:
    """`jax.device_put`, also where other processes have some of the devices; each process has all that is put."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def parts(x):
        return jax.make_array_from_callback(np.shape(x), sharding, lambda index: np.asarray(x)[index])

    return jax.tree.map(parts, tree)


def param_sharding(shape: tuple[int, ...], shard: str) -> NamedSharding:
    """Where a leaf lives: under "fsdp", its longest axis that the devices can share equally is split."""
    count = jax.device_count()
    axes = [axis for axis, length in enumerate(shape) if length % count == 0]
    if shard == "none" or count == 1 or not axes or math.prod(shape) < MIN_SHARDED:
        return NamedSharding(_devices(), PartitionSpec())
    longest = max(axes, key=lambda axis: shape[axis])
    return NamedSharding(_devices(), PartitionSpec(*[None] * longest, "data"))


def constrain(tree: Any, shard: str) -> Any:
    """Inside a program: leaves that were computed live where those live that they replace."""
    if shard == "none":
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, param_sharding(x.shape, shard)), tree)


@functools.cache
def _devices() -> jax.sharding.Mesh:
    # Auto axes: under Explicit ones, scatter and permutation fail.
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
