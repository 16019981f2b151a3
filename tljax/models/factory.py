"""A model by name: backbone stages in a chain, and a head on their maps."""

from __future__ import annotations

import dataclasses
import inspect
import math
import typing
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from tljax.config.fields import coerce
from tljax.errors import UserError, did_you_mean
from tljax.models import initializers
from tljax.models.backbones import convnext, densenet, inception, resnet, unet, vgg
from tljax.models.heads import HEADS, Head
from tljax.models.layers import NORM_AFTER

FAMILIES = {
    "vgg": vgg,
    "resnet": resnet,
    "densenet": densenet,
    "inception": inception,
    "convnext": convnext,
    "unet": unet,
}

# As in `NORM_AFTER`; a family's own rows are about its stages.
HEAD_NORM_AFTER = ((r"(head/.*)/conv", r"\1/bn"), (r"(head/neck)/up", r"\1/bn"))


class FeatureInfo(NamedTuple):
    """A stage's map beside the input: `stride` input pixels to a place, and its channels."""

    stride: int
    channels: int


class Model(nnx.Module):
    """A chain of named stages under a head.

    Attributes:
      family: key of `FAMILIES`, which `tljax.weights` looks up its renaming rules by.
      config: the family's variant.
      stage_names: the stages in order; each is an attribute, and so is `head`.
      cut: stages of the variant that are not built, because the head taps an earlier one.
      in_channels: of the input.
      remat: whether a stage's inner maps are computed again in the backward pass instead of kept.
    """

    def __init__(
        self, family: str, config: Any, stages: dict[str, nnx.Module], cut: tuple[str, ...], in_channels: int, remat
    ):
        self.family, self.config, self.in_channels, self.remat = family, config, in_channels, remat
        self.stage_names, self.cut = tuple(stages), cut
        for name, stage in stages.items():
            setattr(self, name, stage)

    def features(
        self,
        images: jax.Array | None,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
        cached_features: Mapping[str, jax.Array] = MappingProxyType({}),
    ) -> dict[str, jax.Array]:
        """Maps of the stages by name: preprocessed images [B, H, W, in_channels] → {stage: [B, h, w, c]}.

        `known` are maps of first stages that somebody has computed already: no stage up to the last of them runs, the
        images are not looked at, and of those stages there are no other maps.
        """

        def run(stage: nnx.Module, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
            return stage(x, train=train, rngs=rngs)

        run, maps, x = nnx.remat(run) if self.remat else run, dict(cached_features), images
        done = max((self.stage_names.index(name) + 1 for name in cached_features), default=0)
        if done:
            x = cached_features[self.stage_names[done - 1]]
        for name in self.stage_names[done:]:
            x = maps[name] = run(getattr(self, name), x, rngs)
        return maps

    def forward_all(
        self,
        images: jax.Array | None,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
        cached_features: Mapping[str, jax.Array] = MappingProxyType({}),
    ) -> dict[str, jax.Array]:
        """All that objectives ask for: the head's outputs, `maps` by stage, and in training the further outputs.

        What a head returns as an array is `logits`. Further outputs are those of auxiliary classifiers, and what
        `tljax.models.heads.auxiliary` adds; `known` is as in `features`.
        """
        maps = self.features(images, train, rngs, cached_features)
        made = self.head(maps, train=train, rngs=rngs)
        outputs = (made if isinstance(made, dict) else {"logits": made}) | {"maps": maps}
        return outputs | (self.head.auxiliary(maps, train, rngs) if train else {})

    def __call__(self, images: jax.Array, train: bool = False, rngs: nnx.Rngs | None = None):
        """What the head makes of preprocessed images [B, H, W, C]; `rngs` only for dropout in training."""
        return self.head(self.features(images, train, rngs), train=train, rngs=rngs)

    def first_stages(self, stages: Sequence[str]) -> Model:
        """The first stages alone, without a head: these modules themselves, under the same paths."""
        parts = {name: getattr(self, name) for name in stages}
        return Model(self.family, self.config, parts, (), self.in_channels, remat=False)

    @property
    def norm_of_conv(self) -> tuple[tuple[str, str], ...]:
        """(pattern, replacement) pairs from a convolution's path to that of the BatchNorm of its outputs."""
        return (*HEAD_NORM_AFTER, *getattr(FAMILIES[self.family], "NORM_AFTER", NORM_AFTER))

    def feature_info(self) -> dict[str, FeatureInfo]:
        """Stride and channels of every stage's map; strides that unpadded convolutions blur are rounded to 2^n."""
        side = 512
        maps = feature_shapes(self, side)
        return {n: FeatureInfo(2 ** round(math.log2(side / maps[n][0])), maps[n][2]) for n in self.stage_names}


def list_backbones() -> list[str]:
    """Every backbone."""
    return [name for family in FAMILIES.values() for name in family.VARIANTS]


def get_variant(backbone: str | Any, options: Mapping[str, Any] = MappingProxyType({})) -> tuple[str, Any]:
    """The family of a backbone, and its variant with `options` in place."""
    for family, module in FAMILIES.items():
        known = isinstance(backbone, str) and backbone in module.VARIANTS
        if not known and not isinstance(backbone, module.Variant):
            continue
        variant = module.VARIANTS[backbone] if known else backbone
        hints = typing.get_type_hints(type(variant))
        for name in options:
            if name not in hints:
                raise UserError(f'model.options: {family} has no "{name}"{did_you_mean(name, hints)}')
        given = {name: coerce(value, hints[name], f"model.options.{name}") for name, value in options.items()}
        return family, dataclasses.replace(variant, **given)
    raise UserError(f'There is no model.backbone "{backbone}"{did_you_mean(backbone, list_backbones())}')


def create_model(
    backbone: str | Any,
    *,
    num_classes: int,
    head: str = "classifier",
    out_stage: str | None = None,
    image_size: int = 224,
    in_channels: int = 3,
    options: Mapping[str, Any] = MappingProxyType({}),
    auxiliary: bool = False,
    remat: bool = False,
    dtype: jnp.dtype | None = None,
    rngs: nnx.Rngs | None,
    **head_options,
) -> Model:
    """Builds a model with random weights (`tljax.models.initializers`).

    Args:
      backbone: name, e.g. "vgg16", or a family's config such as `vgg.Variant(blocks=((8,), (16, 16)))`.
      num_classes: outputs of the head; 0: the features that the classifier would stand on.
      head: key of `HEADS`.
      out_stage: the stage whose map feeds the head; later ones are not built. None: the last.
      image_size: side of the input in pixels; only heads that flatten or return to that side depend on it.
      in_channels: of the input.
      options: fields of the variant that differ, e.g. {"drop_path": 0.1}.
      auxiliary: build further outputs for training: the family's auxiliary classifiers, or those of a dense head.
      remat: compute the inner maps of stages again in the backward pass, which saves memory and costs time.
      dtype: of the computation, e.g. jnp.bfloat16; parameters and statistics are float32.
      rngs: stream `params`; None leaves the model abstract, its leaves shapes without values.
      **head_options: of the head's class; those left out are as the network was published.

    Raises:
      UserError: no such backbone, option, head, or stage.
    """
    family, config = get_variant(backbone, options)
    if head not in HEADS:
        raise UserError(f'There is no model.head "{head}"{did_you_mean(head, HEADS)}')
    head_options = _converted(head, head_options)

    def construct() -> Model:
        given = {"dtype": dtype, "rngs": _AbstractRngs()}
        stages = FAMILIES[family].stages(config, inputs=in_channels, **given)
        if out_stage is not None and out_stage not in stages:
            raise UserError(
                f'model.out_stage: there is no stage "{out_stage}" in {backbone}{did_you_mean(out_stage, stages)}'
            )
        order = list(stages)
        last = order.index(out_stage) + 1 if out_stage else len(order)
        model = Model(family, config, {n: stages[n] for n in order[:last]}, tuple(order[last:]), in_channels, remat)
        shapes = feature_shapes(model, image_size)
        if any(0 in shape for shape in shapes.values()):
            raise UserError(f"data.image_size={image_size} is too small for {backbone}: its last map is empty.")
        own = {}
        if auxiliary and "auxiliary" not in inspect.signature(HEADS[head].__init__).parameters:
            raise UserError(f"model.aux_weight: the head {head} has no auxiliary outputs.")
        if auxiliary:
            classifiers = head == "classifier"
            made = _auxiliary(backbone, family, config, num_classes, shapes, given) if classifiers else True
            own = {"auxiliary": made}
        model.head = make_head(head, model, num_classes, image_size, own | head_options, **given, shapes=shapes)
        return model

    model = nnx.eval_shape(construct)
    if rngs is not None:
        init_missing(model, rngs)
    return model


def make_head(
    head: str,
    model: Model,
    num_classes: int,
    side: int,
    options: Mapping[str, Any],
    dtype,
    rngs,
    shapes: Mapping[str, tuple[int, int, int]] | None = None,
) -> Head:
    """A head of `HEADS` for a model's stages; a classifier has what its family's had where `options` say nothing.

    `shapes` are the model's `map_shapes` where they are there already: it takes a trace of all stages to know them.
    """
    own = getattr(FAMILIES[model.family], "HEAD", {}) if head == "classifier" else {}
    if "side" in inspect.signature(HEADS[head].__init__).parameters:
        own = own | {"side": side}
    shapes = shapes or feature_shapes(model, side)
    return HEADS[head](shapes, num_classes, **own | dict(options), dtype=dtype, rngs=rngs)


def head_option_types(head: str) -> dict[str, Any]:
    """The options of a head of `HEADS`, and their types."""
    hints = typing.get_type_hints(HEADS[head].__init__)
    parameters = inspect.signature(HEADS[head].__init__).parameters.values()
    given = ("side", "auxiliary", "dtype", "rngs")
    return {p.name: hints[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in given}


def _converted(head: str, options: Mapping[str, Any]) -> dict[str, Any]:
    hints = head_option_types(head)
    for name in options:
        if name not in hints:
            raise UserError(f'model.head_options: {head} has no "{name}"{did_you_mean(name, hints)}')
    return {name: coerce(value, hints[name], f"model.head_options.{name}") for name, value in options.items()}


def init_missing(model: Model, rngs: nnx.Rngs) -> None:
    """Draws the leaves that have no value yet, in place; stream `params`."""
    own = getattr(FAMILIES[model.family], "INITIALISERS", {})
    initializers.init_missing_params(model, rngs.params(), own, getattr(model.head, "initialisers", {}))


class _AbstractRngs:
    """Stands in for nnx.Rngs: layers are made without values, and counting keys is slow under tracing."""

    def __getattr__(self, stream: str):
        return lambda: None


def _auxiliary(backbone, family: str, config, num_classes: int, shapes, given) -> dict[str, tuple[str, nnx.Module]]:
    make = getattr(FAMILIES[family], "auxiliary", None)
    made = make(config, num_classes, **given) if make else {}
    if not made:
        raise UserError(f"model.aux_weight: {backbone} has no auxiliary classifiers.")
    made = {name: (stage, module) for name, (stage, module) in made.items() if stage in shapes}
    for stage, module in made.values():  # some maps are too small for it: better said now than in the first step
        nnx.eval_shape(lambda m, x: m(x), module, jax.ShapeDtypeStruct((1, *shapes[stage]), jnp.float32))
    return made


def feature_shapes(model: Model, side: int) -> dict[str, tuple[int, int, int]]:
    """[H, W, C] of every stage's map, in the order of the stages."""
    picture = jax.ShapeDtypeStruct((1, side, side, model.in_channels), jnp.float32)
    maps = nnx.eval_shape(lambda m, x: m.features(x), model, picture)
    return {name: maps[name].shape[1:] for name in model.stage_names}
