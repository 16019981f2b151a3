"""What all heads have in common, and the maps that dense ones stand on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
from flax import nnx

Shapes = dict[str, tuple[int, int, int]]


class Head(nnx.Module):
    """Takes every stage's map; called as `head(maps, train=..., rngs=...)`.

    Its keyword arguments are the options that a user may set, but for `side` (of the network's input in pixels, for
    heads that ask for it), `auxiliary` (whether to build further outputs, for training), `dtype` and `rngs`. A call
    gives the logits, or a dict of outputs.

    Attributes:
      reusable_params: pattern of paths below `head/` that are worth taking from weights which have them.
      weight_aliases: layer of another head → layer of this one that can take its weights, reshaped.
      initialisers: pattern of paths → initialiser, before the tables of `tljax.models.initializers` and the family.
      auxiliary_stages: (name, stage) of further outputs that look at a stage's map, or where that is None at all of
        them as heads do; each is an attribute.
    """

    reusable_params: str = "(?!)"
    weight_aliases: Mapping[str, str] = MappingProxyType({})
    auxiliary_stages: tuple[tuple[str, str | None], ...] = ()

    @property
    def initialisers(self) -> Mapping[str, Callable]:
        """See above."""
        return {}

    @property
    def main_features(self) -> dict[str, tuple[int, int] | None]:
        """`reads` of the head without its further outputs."""
        raise NotImplementedError

    @property
    def required_features(self) -> dict[str, tuple[int, int] | None]:
        """The stages whose maps are looked at, and the grid that one may be averaged to first without a difference."""
        found = dict(self.main_features)
        for name, stage in self.auxiliary_stages:
            theirs = getattr(self, name).required_features if stage is None else {stage: None}
            for one, grid in theirs.items():
                found[one] = grid if found.get(one, grid) == grid else None
        return found

    def auxiliary(self, features: dict[str, jax.Array], train: bool = False, rngs: nnx.Rngs | None = None):
        """Maps [B, H, W, C] by stage → {name: output} of `auxiliary_stages`."""
        return {
            name: getattr(self, name)(features if stage is None else features[stage], train, rngs)
            for name, stage in self.auxiliary_stages
        }


class StrideLevel(NamedTuple):
    """The last map of a stride: its stage, about how many input pixels a place spans, and its shape [H, W, C]."""

    stage: str
    stride: int
    shape: tuple[int, int, int]


def stride_levels(shapes: Shapes, side: int) -> list[StrideLevel]:
    """The last map of every stride, from the finest to the deepest.

    A stride is told from the one before by a side of at most half, rounded up: unpadded convolutions take off a little
    as well. So the levels of a network do not depend on the size of its input.

    Args:
      shapes: [H, W, C] of every stage's map, in the order of the stages.
      side: of the input.
    """
    found, before = [], None
    for stage, shape in shapes.items():
        if before is None:
            found.append(StrideLevel(stage, 2 ** round(math.log2(side / shape[0])), shape))
        elif shape[0] < before and shape[0] <= (before + 1) // 2:
            found.append(StrideLevel(stage, 2 * found[-1].stride, shape))
        else:
            found[-1] = StrideLevel(stage, found[-1].stride, shape)
        before = shape[0]
    return found
