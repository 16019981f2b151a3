"""The head of classification."""

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
    """Pooling, an optional norm, optional hidden layers with ReLU, and the layer `dense`.

    Args:
      shapes: [H, W, C] of every stage's map, in the order of the stages; the last one is used.
      num_classes: outputs; 0 leaves `dense` out, so that what would go into it comes out.
      pool: "avg" averages over the map; "flatten" keeps every place, in H, W, C order as Keras does.
      pool_size: with "flatten", side of the grid that the map is averaged to first; None keeps every place.
      norm: after pooling: "batch" standardises each channel, averaged or at all its places, by BatchNorm without
        scale and bias; "layer" is LayerNorm with both, as in ConvNeXt; "none" is neither.
      hidden: widths of hidden layers.
      dropout: rate before each dense layer.
      auxiliary: name → (stage, classifier on that stage's map) of a family's further classifiers, for training.
    """

    # What is worth having of other weights, below head/.
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
        # By name: a dict of maps that has been through jit is no longer in the order of the stages.
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
        """Maps [B, H, W, C] by stage → logits [B, num_classes] (or features [B, C]), float32 at least."""
        x = average_pool_to(features[self.stage], self.grid)
        x = self.norm(x, train) if self.norm is not None else x
        x = x.reshape(len(x), -1)
        for name in self.hidden_names:
            x = nnx.relu(getattr(self, name)(self.drop(x, train, rngs)))
        x = x if self.dense is None else self.dense(self.drop(x, train, rngs))
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))

    @property
    def main_features(self) -> dict[str, tuple[int, int]]:
        """The last stage's map, which may be averaged to the grid."""
        return {self.stage: self.grid}


NORMS = {
    "none": lambda channels, dtype, rngs: None,
    "batch": lambda channels, dtype, rngs: BatchNorm(channels, affine=False, dtype=dtype, rngs=rngs),
    "layer": lambda channels, dtype, rngs: LayerNorm(channels, dtype=dtype, rngs=rngs),
}
