"""One mesh over all devices: batches are split over it, everything else is copied to all of it."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tljax.errors import UserError


class Mesh:
    """The data mesh; the same code runs on one device and on eight."""

    def __init__(self, batch_size: int):
        count = jax.device_count()
        if batch_size % count:
            raise UserError(f"train.batch_size={batch_size} cannot be split over {count} devices: take a multiple.")
        # Auto axes: under Explicit ones, scatter and permutation fail.
        mesh = jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,))
        self.batch_sharding = NamedSharding(mesh, PartitionSpec("data"))
        self.replicated = NamedSharding(mesh, PartitionSpec())

    def put_batch(self, batch: Any) -> Any:
        """Splits the leading axis over the devices."""
        return jax.device_put(batch, self.batch_sharding)

    def put(self, tree: Any) -> Any:
        """Copies to all devices."""
        return jax.device_put(tree, self.replicated)

    def like(self, tree: Any) -> Any:
        """The shapes and types of what `put` would give."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.replicated), tree)
