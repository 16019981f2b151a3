"""What a strategy adds to a model: further outputs of its head, in training only.

They live under `head/`, so that what freezes or learns the head has them too, and are left out of predictions.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
from flax import nnx

from tljax.models.factory import Model, make_head
from tljax.models.layers import Conv

# Paths of what is added here, as a pattern.
TRAIN_ONLY_OUTPUTS = "head/(source|hint_[^/]+)/.*"


class HintProjection(nnx.Module):
    """A 1×1 convolution from a student's channels to a teacher's (Romero et al. 2015, arXiv:1412.6550)."""

    def __init__(self, inputs: int, outputs: int, *, dtype=None, rngs):
        self.conv = Conv(inputs, outputs, 1, dtype=dtype, rngs=rngs)

    def __call__(self, features: jax.Array, train: bool = False, rngs: nnx.Rngs | None = None) -> jax.Array:
        """[B, H, W, inputs] → [B, H, W, outputs]."""
        return self.conv(features)


def add_source_head(
    model: Model, num_classes: int, image_size: int, options: Mapping, dtype=None, head: str = "classifier"
) -> None:
    """Adds the output `source`: a second head on the same maps; a classifier as the network was published with one.

    Args:
      model: abstract; changed in place.
      num_classes: of the output.
      image_size: side of the input in pixels.
      options: of the head, which differ from the published or default ones.
      dtype: of the computation.
      head: key of `HEADS`.
    """
    _add(model, "source", None, lambda rngs: make_head(head, model, num_classes, image_size, options, dtype, rngs))


def add_hint(model: Model, stage: str, channels: int, dtype=None) -> None:
    """Adds the output `hint_STAGE`: the stage's map [B, h, w, c], regressed to a teacher's `channels`."""
    inputs = model.feature_info()[stage].channels
    _add(model, f"hint_{stage}", stage, lambda rngs: HintProjection(inputs, channels, dtype=dtype, rngs=rngs))


def _add(model: Model, name: str, stage: str | None, make) -> None:
    setattr(model.head, name, nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    model.head.auxiliary_stages += ((name, stage),)
