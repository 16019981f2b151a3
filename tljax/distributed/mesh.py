"""A mesh of all devices: batches are split over it, parameters are replicated or sharded."""

from __future__ import annotations

import functools
import math
import os
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tljax.errors import UserError

# Parameters with fewer elements are replicated: gathering them takes longer than reading them.
MIN_SHARDED = 1 << 14


class DeviceMesh:
    """A mesh with one axis, "data", over all devices.

    Args:
      batch_size: training batch size, a multiple of the number of devices.
      shard: "none": parameters are replicated; "fsdp": each device has a shard of the large parameters, of their
        gradients and of the optimizer state, and gathers them where they are used (ZeRO-3, Rajbhandari et al. 2020,
        arXiv:1910.02054; FSDP).

    Raises:
      UserError: the batch size is not a multiple of the number of devices.
    """

    def __init__(self, batch_size: int, shard: str = "none"):
        self.num_devices = jax.device_count()
        self.sharding = shard
        if batch_size % self.num_devices:
            raise UserError(
                f"train.batch_size={batch_size} cannot be split over {self.num_devices} devices: set a multiple."
            )
        self.batch_sharding = NamedSharding(_mesh(), PartitionSpec("data"))
        self.steps_sharding = NamedSharding(_mesh(), PartitionSpec(None, "data"))
        self.replicated = NamedSharding(_mesh(), PartitionSpec())

    def round_up(self, rows: int) -> int:
        """Return the smallest multiple of the number of devices that is at least `rows`."""
        return -(-rows // self.num_devices) * self.num_devices

    def put_batch(self, batch: Any) -> Any:
        """Split the leading axis over the devices."""
        return _put(batch, self.batch_sharding)

    def put_steps(self, block: Any) -> Any:
        """Split the second axis of stacked batches [steps, B, ...], the images of each batch, over the devices."""
        return _put(block, self.steps_sharding)

    def put(self, tree: Any) -> Any:
        """Copy a tree to all devices."""
        return _put(tree, self.replicated)

    def put_variables(self, tree: Any) -> Any:
        """Put variables, or a train state, on the devices, replicated or sharded as `shard` says."""
        return jax.tree.map(lambda x: _put(x, param_sharding(x.shape, self.sharding)), tree)

    @property
    def is_cpu(self) -> bool:
        """Whether the devices are CPUs, which share the memory of the host."""
        return jax.local_devices()[0].platform == "cpu"

    def device_memory(self) -> int:
        """Return the bytes of memory of one device; CPU devices report none and share the memory of the host."""
        stats = jax.local_devices()[0].memory_stats() or {}
        host_memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return stats.get("bytes_limit", host_memory // len(jax.local_devices()))


def _put(tree: Any, sharding: NamedSharding) -> Any:
    """`jax.device_put` that also works with several processes, of which each has the whole tree."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def put_shards(x):
        return jax.make_array_from_callback(np.shape(x), sharding, lambda index: np.asarray(x)[index])

    return jax.tree.map(put_shards, tree)


def param_sharding(shape: tuple[int, ...], shard: str) -> NamedSharding:
    """Return the sharding of a parameter: with "fsdp", its longest axis that the number of devices divides is split.

    Args:
      shape: shape of the parameter.
      shard: "none" or "fsdp".
    """
    count = jax.device_count()
    axes = [axis for axis, length in enumerate(shape) if length % count == 0]
    if shard == "none" or count == 1 or not axes or math.prod(shape) < MIN_SHARDED:
        return NamedSharding(_mesh(), PartitionSpec())
    longest = max(axes, key=lambda axis: shape[axis])
    return NamedSharding(_mesh(), PartitionSpec(*[None] * longest, "data"))


def constrain(tree: Any, shard: str) -> Any:
    """Constrain updated parameters in a jitted function to the sharding that `put_variables` gave them."""
    if shard == "none":
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, param_sharding(x.shape, shard)), tree)


@functools.cache
def _mesh() -> jax.sharding.Mesh:
    # Auto axes: scatter and permutation fail with Explicit ones.
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
