"""A model: named stages in sequence, and a head on their feature maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from tljax.models.backbones import get_family
from tljax.models.layers import NORM_AFTER

# Same form as `layers.NORM_AFTER`; the tables of families cover the stages only.
HEAD_NORM_AFTER = ((r"(head/.*)/conv", r"\1/bn"), (r"(head/neck)/up", r"\1/bn"))


class FeatureInfo(NamedTuple):
    """Stride of a stage's feature map in input pixels, and its number of channels."""

    stride: int
    channels: int


class Model(nnx.Module):
    """A sequence of named stages, and a head.

    Attributes:
      family: key of `FAMILIES`, or the file of a custom backbone; `tljax.weights` looks up checkpoint layouts by it.
      config: the family's `Variant`.
      stage_names: the stages in order; each is an attribute, and so is `head`.
      unused_stages: stages of the variant after `out_stage`, which are not built.
      in_channels: channels of the input.
      remat: whether the backward pass recomputes activations inside stages instead of storing them.
    """

    head: Any

    def __init__(
        self, family: str, config: Any, stages: dict[str, nnx.Module], cut: tuple[str, ...], in_channels: int, remat
    ):
        self.family = family
        self.config = config
        self.in_channels = in_channels
        self.remat = remat
        self.stage_names = tuple(stages)
        self.unused_stages = cut
        for name, stage in stages.items():
            setattr(self, name, stage)

    def features(
        self,
        images: jax.Array | None,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
        cached_features: Mapping[str, jax.Array] = MappingProxyType({}),
    ) -> dict[str, jax.Array]:
        """Compute the feature maps of all stages.

        Args:
          images: preprocessed images [B, H, W, in_channels].
          train: whether to use batch statistics and dropout.
          rngs: random keys for dropout in training.
          cached_features: precomputed features {stage: [B, h, w, c]} of leading stages. Stages up to the last of these
            are skipped, `images` may be None, and of the skipped stages only the given ones appear in the result.

        Returns:
          {stage: [B, h, w, c]}.
        """

        def run_stage(stage: nnx.Module, x: jax.Array | None, rngs: nnx.Rngs | None) -> jax.Array:
            return stage(x, train=train, rngs=rngs)

        if self.remat:
            run_stage = nnx.remat(run_stage)
        features = dict(cached_features)
        num_skipped = max((self.stage_names.index(name) + 1 for name in cached_features), default=0)
        x = cached_features[self.stage_names[num_skipped - 1]] if num_skipped else images
        for name in self.stage_names[num_skipped:]:
            x = features[name] = run_stage(getattr(self, name), x, rngs)
        return features

    def forward_all(
        self,
        images: jax.Array | None,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
        cached_features: Mapping[str, jax.Array] = MappingProxyType({}),
    ) -> dict[str, Any]:
        """Compute everything that losses read; arguments as in `features`.

        Returns:
          The head's outputs, under "logits" if the head returns a single array; the features by stage, under "maps";
          and in training the auxiliary outputs of the head (auxiliary classifiers, and those that
          `tljax.models.heads.auxiliary` adds).
        """
        features = self.features(images, train, rngs, cached_features)
        outputs = self.head(features, train=train, rngs=rngs)
        if not isinstance(outputs, dict):
            outputs = {"logits": outputs}
        outputs = outputs | {"maps": features}
        return outputs | (self.head.auxiliary(features, train, rngs) if train else {})

    def __call__(self, images: jax.Array, train: bool = False, rngs: nnx.Rngs | None = None):
        """Return the head's outputs for preprocessed images [B, H, W, C]; `rngs` only for dropout in training."""
        return self.head(self.features(images, train, rngs), train=train, rngs=rngs)

    def first_stages(self, stages: Sequence[str]) -> Model:
        """Return a model of the leading stages without a head, which shares their modules and variable paths."""
        modules = {name: getattr(self, name) for name in stages}
        return Model(self.family, self.config, modules, (), self.in_channels, remat=False)

    @property
    def stages_with_params(self) -> list[str]:
        """Names of the stages that have parameters."""
        return [name for name in self.stage_names if nnx.to_flat_state(nnx.state(getattr(self, name), nnx.Param))]

    @property
    def norm_of_conv(self) -> tuple[tuple[str, str], ...]:
        """(pattern, replacement) pairs from a convolution's path to that of the BatchNorm of its outputs."""
        return (*HEAD_NORM_AFTER, *getattr(get_family(self.family), "NORM_AFTER", NORM_AFTER))

    def feature_info(self) -> dict[str, FeatureInfo]:
        """Return stride and channels of every stage's feature map.

        Strides are rounded to powers of two, because unpadded convolutions make feature maps slightly smaller.
        """
        side = 512
        shapes = feature_shapes(self, side)
        return {
            name: FeatureInfo(2 ** round(math.log2(side / height)), channels)
            for name, (height, _, channels) in shapes.items()
        }


def feature_shapes(model: Model, side: int) -> dict[str, tuple[int, int, int]]:
    """Return the shape [H, W, C] of every stage's features, in stage order, for images of `side` × `side` pixels."""
    image = jax.ShapeDtypeStruct((1, side, side, model.in_channels), jnp.float32)
    features = nnx.eval_shape(lambda m, x: m.features(x), model, image)
    return {name: features[name].shape[1:] for name in model.stage_names}
