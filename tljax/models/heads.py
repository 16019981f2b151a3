"""What stands on a backbone: takes every stage's map, returns what its task needs."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from tljax.models.layers import BatchNorm, Dropout


class Classifier(nnx.Module):
    """Pooling, optional standardisation, optional hidden layers with ReLU, and the output layer `dense`.

    Args:
      shape: [H, W, C] of the last map.
      num_classes: outputs.
      pool: "gap" averages over the map; "flatten" keeps every place, in H, W, C order as Keras does.
      norm: standardise the pooled features by BatchNorm without scale and bias.
      hidden: widths of hidden layers.
      dropout: rate before each dense layer.
    """

    def __init__(self, shape, num_classes: int, *, pool="gap", norm=False, hidden=(), dropout=0.0, dtype=None, rngs):
        self.pool = pool
        inputs = shape[-1] if pool == "gap" else math.prod(shape)
        self.norm = BatchNorm(inputs, affine=False, dtype=dtype, rngs=rngs) if norm else None
        self.drop = Dropout(dropout)
        self.hidden_names = tuple(f"hidden{i}" for i in range(len(hidden)))
        for name, width in zip(self.hidden_names, hidden, strict=True):
            setattr(self, name, nnx.Linear(inputs, width, dtype=dtype, rngs=rngs))
            inputs = width
        self.dense = nnx.Linear(inputs, num_classes, dtype=dtype, rngs=rngs)

    def __call__(self, features: dict[str, jax.Array], train=False, rngs: nnx.Rngs | None = None):
        """Maps [B, H, W, C] by stage → logits [B, num_classes], float32 at least."""
        last = list(features.values())[-1]
        x = last.mean((1, 2)) if self.pool == "gap" else last.reshape(len(last), -1)
        x = self.norm(x, train) if self.norm is not None else x
        for name in self.hidden_names:
            x = nnx.relu(getattr(self, name)(self.drop(x, train, rngs)))
        logits = self.dense(self.drop(x, train, rngs))
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


HEADS = {"classifier": Classifier}
