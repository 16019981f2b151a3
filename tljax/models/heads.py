"""What stands on a backbone: takes every stage's map, returns what its task needs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from tljax.models.layers import BatchNorm, Dropout, average_pool_to


class Classifier(nnx.Module):
    """Pooling, optional standardisation per channel, optional hidden layers with ReLU, and the layer `dense`.

    Args:
      shapes: [H, W, C] of every stage's map, in the order of the stages; the last one is used.
      num_classes: outputs.
      pool: "gap" averages over the map; "flatten" keeps every place, in H, W, C order as Keras does.
      pool_size: with "flatten", side of the grid that the map is averaged to first; None keeps every place.
      norm: standardise each channel, averaged or at all its places, by BatchNorm without scale and bias.
      hidden: widths of hidden layers.
      dropout: rate before each dense layer.
    """

    def __init__(
        self,
        shapes: dict[str, tuple[int, int, int]],
        num_classes: int,
        *,
        pool: str = "gap",
        pool_size: int | None = None,
        norm: bool = False,
        hidden: Sequence[int] = (),
        dropout: float = 0.0,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        # By name: a dict of maps that has been through jit is no longer in the order of the stages.
        self.stage, (height, width, channels) = list(shapes.items())[-1]
        self.grid = {"gap": (1, 1), "flatten": (pool_size or height, pool_size or width)}[pool]
        self.norm = BatchNorm(channels, affine=False, dtype=dtype, rngs=rngs) if norm else None
        inputs = math.prod(self.grid) * channels
        self.drop = Dropout(dropout)
        self.hidden_names = tuple(f"hidden{i}" for i in range(len(hidden)))
        for name, units in zip(self.hidden_names, hidden, strict=True):
            setattr(self, name, nnx.Linear(inputs, units, dtype=dtype, rngs=rngs))
            inputs = units
        self.dense = nnx.Linear(inputs, num_classes, dtype=dtype, rngs=rngs)

    def __call__(self, features: dict[str, jax.Array], train: bool = False, rngs: nnx.Rngs | None = None):
        """Maps [B, H, W, C] by stage → logits [B, num_classes], float32 at least."""
        x = average_pool_to(features[self.stage], self.grid)
        x = self.norm(x, train) if self.norm is not None else x
        x = x.reshape(len(x), -1)
        for name in self.hidden_names:
            x = nnx.relu(getattr(self, name)(self.drop(x, train, rngs)))
        logits = self.dense(self.drop(x, train, rngs))
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


HEADS = {"classifier": Classifier}
