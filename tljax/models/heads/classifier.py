"""The classification head."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
from flax import nnx

from tljax.models.heads.base import Head
from tljax.models.layers import BatchNorm, Dropout, LayerNorm, Linear, average_pool_to


class Classifier(Head):
    """Pooling, an optional norm, optional hidden layers with ReLU, and the output layer `dense`.

    Args:
      shapes: [H, W, C] of every stage's features, in stage order; the last one is used.
      num_classes: number of outputs; 0 omits `dense`, so that the head returns the features before it.
      pool: "avg" averages over all locations; "flatten" keeps all locations, in H, W, C order as in Keras.
      pool_size: with "flatten", side of the grid to which features are averaged first; None: no averaging.
      norm: applied after pooling: "batch" is BatchNorm without scale and bias; "layer" is LayerNorm with both, as in
        ConvNeXt; "none" is no norm.
      hidden: widths of the hidden layers.
      dropout: rate before each dense layer.
      auxiliary: name → (stage, classifier on that stage's features), the family's auxiliary classifiers for training.
      dtype: dtype of the computation.
      rngs: required by Flax; initial values come from `tljax.models.initializers`.
    """

    reusable_params = r"norm/.*"

    def __init__(
        self,
        shapes: dict[str, tuple[int, int, int]],
        num_classes: int,
        *,
        pool: str = "avg",
        pool_size: int | None = None,
        norm: str = "none",
        hidden: tuple[int, ...] = (),
        dropout: float = 0.0,
        auxiliary: Mapping[str, tuple[str, nnx.Module]] = MappingProxyType({}),
        dtype=None,
        rngs: nnx.Rngs,
    ):
        # The stage is stored by name: jit returns dicts of features sorted by key, not in stage order.
        self.stage, (height, width, channels) = list(shapes.items())[-1]
        self.grid = {"avg": (1, 1), "flatten": (pool_size or height, pool_size or width)}[pool]
        self.norm = NORMS[norm](channels, dtype, rngs)
        inputs = math.prod(self.grid) * channels
        self.drop = Dropout(dropout)
        self.hidden_names = tuple(f"hidden{i}" for i in range(len(hidden)))
        for name, units in zip(self.hidden_names, hidden, strict=True):
            setattr(self, name, Linear(inputs, units, dtype=dtype, rngs=rngs))
            inputs = units
        self.dense = Linear(inputs, num_classes, dtype=dtype, rngs=rngs) if num_classes else None
        self.auxiliary_stages = tuple((name, stage) for name, (stage, _) in auxiliary.items())
        for name, (_, classifier) in auxiliary.items():
            setattr(self, name, classifier)

    def __call__(self, features: dict[str, jax.Array], train: bool = False, rngs: nnx.Rngs | None = None):
        """Return logits [B, num_classes], or features [B, C] without `dense`, in at least float32.

        Args:
          features: {stage: [B, H, W, C]}.
          train: whether to use batch statistics and dropout.
          rngs: random keys for dropout in training.
        """
        x = average_pool_to(features[self.stage], self.grid)
        x = self.norm(x, train) if self.norm is not None else x
        x = x.reshape(len(x), -1)
        for name in self.hidden_names:
            x = nnx.relu(getattr(self, name)(self.drop(x, train, rngs)))
        x = x if self.dense is None else self.dense(self.drop(x, train, rngs))
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))

    @property
    def main_features(self) -> dict[str, tuple[int, int]]:
        """The last stage, whose features can be averaged to the grid first."""
        return {self.stage: self.grid}


NORMS = {
    "none": lambda channels, dtype, rngs: None,
    "batch": lambda channels, dtype, rngs: BatchNorm(channels, affine=False, dtype=dtype, rngs=rngs),
    "layer": lambda channels, dtype, rngs: LayerNorm(channels, dtype=dtype, rngs=rngs),
}
