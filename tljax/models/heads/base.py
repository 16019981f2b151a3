"""The base class of heads, and the strides of a backbone that dense heads read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from flax import nnx

Shapes = dict[str, tuple[int, int, int]]


class Head(nnx.Module):
    """A module that reads the features of all stages, called as `head(features, train=..., rngs=...)`.

    Its keyword-only arguments are options that a user can set, except for `side` (of the network's input in pixels, for
    heads that need it), `auxiliary` (whether to build auxiliary outputs for training), `dtype` and `rngs`. A call
    returns the logits, or a dict of outputs.

    Attributes:
      task: the task of a custom head where the config names none: a `Task`, or the name of a built-in one.
      reusable_params: pattern of paths below `head/` that pretrained weights of another head can provide.
      weight_aliases: layer of another head → layer of this one that can load its weights, reshaped.
      auxiliary_stages: (name, stage) of auxiliary outputs; each is an attribute that reads the features of its stage,
        or like a head those of all stages if that is None.
    """

    task: Any = None
    reusable_params: str = "(?!)"
    weight_aliases: Mapping[str, str] = MappingProxyType({})
    auxiliary_stages: tuple[tuple[str, str | None], ...] = ()

    @property
    def initializers(self) -> Mapping[str, Callable]:
        """Path pattern → initializer; overrides the tables of `tljax.models.initializers` and of the family."""
        return {}

    @property
    def main_features(self) -> dict[str, tuple[int, int] | None]:
        """`required_features` of the head without its auxiliary outputs."""
        raise NotImplementedError

    @property
    def required_features(self) -> dict[str, tuple[int, int] | None]:
        """The stages whose features are read.

        The value is the grid (height, width) to which a stage's features can be averaged without changing the outputs,
        or None.
        """
        required = dict(self.main_features)
        for name, stage in self.auxiliary_stages:
            auxiliary = getattr(self, name).required_features if stage is None else {stage: None}
            for required_stage, grid in auxiliary.items():
                required[required_stage] = grid if required.get(required_stage, grid) == grid else None
        return required

    def auxiliary(self, features: dict[str, jax.Array], train: bool = False, rngs: nnx.Rngs | None = None):
        """Return {name: output} of `auxiliary_stages` for features {stage: [B, H, W, C]}."""
        return {
            name: getattr(self, name)(features if stage is None else features[stage], train, rngs)
            for name, stage in self.auxiliary_stages
        }


class StrideLevel(NamedTuple):
    """The last stage at a stride.

    Attributes:
      stage: name of the stage.
      stride: in input pixels, rounded to a power of two.
      shape: [H, W, C] of its features.
    """

    stage: str
    stride: int
    shape: tuple[int, int, int]


def stride_levels(shapes: Shapes, side: int) -> list[StrideLevel]:
    """Return the last stage at every stride, finest first.

    A stage starts a new stride if its side is at most half of the previous stage's, rounded up: unpadded convolutions
    make sides slightly smaller too. The levels of a network therefore do not depend on the size of its input.

    Args:
      shapes: [H, W, C] of every stage's features, in stage order.
      side: side of the input in pixels.
    """
    levels = []
    previous_side = None
    for stage, shape in shapes.items():
        if previous_side is None:
            levels.append(StrideLevel(stage, 2 ** round(math.log2(side / shape[0])), shape))
        elif shape[0] < previous_side and shape[0] <= (previous_side + 1) // 2:
            levels.append(StrideLevel(stage, 2 * levels[-1].stride, shape))
        else:
            levels[-1] = StrideLevel(stage, levels[-1].stride, shape)
        previous_side = shape[0]
    return levels
