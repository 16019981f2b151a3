"""Auxiliary outputs that a strategy adds to a model's head for training.

Their parameters are below `head/`, so that rules which freeze or train the head apply to them too. They are not part of
predictions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import jax
from flax import nnx

from tljax.models.factory import default_head_options, feature_shapes
from tljax.models.heads import get_head
from tljax.models.layers import Conv
from tljax.models.model import Model

# Pattern of the paths of all parameters that this module adds.
TRAIN_ONLY_PARAMS = "head/(source|hint_[^/]+)/.*"


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
    """Add the output `source`: a second head on the same features.

    Args:
      model: abstract model, changed in place.
      num_classes: number of outputs.
      image_size: side of the input in pixels.
      options: head options; defaults are those of the published network.
      dtype: dtype of the computation.
      head: key of `HEADS`, or `FILE.py:NAME`.
    """
    options = default_head_options(head, model.family, image_size) | dict(options)
    shapes = feature_shapes(model, image_size)
    make = functools.partial(get_head(head), shapes, num_classes, **options, dtype=dtype)
    _add_output(model, "source", None, lambda rngs: make(rngs=rngs))


def add_hint(model: Model, stage: str, channels: int, dtype=None) -> None:
    """Add the output `hint_STAGE`: the stage's features [B, h, w, c] projected to a teacher's `channels`."""
    inputs = model.feature_info()[stage].channels
    _add_output(model, f"hint_{stage}", stage, lambda rngs: HintProjection(inputs, channels, dtype=dtype, rngs=rngs))


def _add_output(model: Model, name: str, stage: str | None, make: Callable[[nnx.Rngs], nnx.Module]) -> None:
    setattr(model.head, name, nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    model.head.auxiliary_stages += ((name, stage),)
