"""Create a model by name: the stages of a backbone, and a head on their feature maps."""

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
from tljax.models.heads import HEADS
from tljax.models.layers import NORM_AFTER

FAMILIES = {
    "vgg": vgg,
    "resnet": resnet,
    "densenet": densenet,
    "inception": inception,
    "convnext": convnext,
    "unet": unet,
}

# Same form as `layers.NORM_AFTER`; the tables of families cover the stages only.
HEAD_NORM_AFTER = ((r"(head/.*)/conv", r"\1/bn"), (r"(head/neck)/up", r"\1/bn"))


class FeatureInfo(NamedTuple):
    """Stride of a stage's feature map in input pixels, and its number of channels."""

    stride: int
    channels: int


class Model(nnx.Module):
    """A sequence of named stages, and a head.

    Attributes:
      family: key of `FAMILIES`; `tljax.weights` looks up checkpoint layouts by it.
      config: the family's `Variant`.
      stage_names: the stages in order; each is an attribute, and so is `head`.
      cut: stages of the variant after `out_stage`, which are not built.
      in_channels: channels of the input.
      remat: whether the backward pass recomputes activations inside stages instead of storing them.
    """

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

        def run_stage(stage: nnx.Module, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
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
    ) -> dict[str, jax.Array]:
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
        return (*HEAD_NORM_AFTER, *getattr(FAMILIES[self.family], "NORM_AFTER", NORM_AFTER))

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


def list_backbones() -> list[str]:
    """Return the names of all backbones."""
    return [name for family in FAMILIES.values() for name in family.VARIANTS]


def get_variant(backbone: str | Any, options: Mapping[str, Any] = MappingProxyType({})) -> tuple[str, Any]:
    """Return the family of a backbone and its variant.

    Args:
      backbone: name, or a `Variant` of a family.
      options: fields of the variant to replace.

    Raises:
      UserError: there is no such backbone or option.
    """
    for family, module in FAMILIES.items():
        is_name = isinstance(backbone, str) and backbone in module.VARIANTS
        if not is_name and not isinstance(backbone, module.Variant):
            continue
        variant = module.VARIANTS[backbone] if is_name else backbone
        hints = typing.get_type_hints(type(variant))
        for name in options:
            if name not in hints:
                raise UserError(f'model.options: {family} has no "{name}"{did_you_mean(name, hints)}')
        values = {name: coerce(value, hints[name], f"model.options.{name}") for name, value in options.items()}
        return family, dataclasses.replace(variant, **values)
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
    """Create a model with random weights (`tljax.models.initializers`).

    Args:
      backbone: name, e.g. "vgg16", or a family's variant such as `vgg.Variant(blocks=((8,), (16, 16)))`.
      num_classes: outputs of the head; 0: a classifier returns the features before its last layer.
      head: key of `HEADS`.
      out_stage: the last stage to build, whose features the head reads. None: the variant's last stage.
      image_size: side of the input in pixels; matters only to heads that flatten features or predict at that size.
      in_channels: channels of the input.
      options: fields of the variant to replace, e.g. {"drop_path": 0.1}.
      auxiliary: build auxiliary outputs for training: the family's auxiliary classifiers, or those of a dense head.
      remat: recompute activations inside stages in the backward pass, which saves memory and costs time.
      dtype: dtype of the computation, e.g. jnp.bfloat16; parameters and statistics are float32.
      rngs: stream `params`; None leaves the model abstract, its variables `ShapeDtypeStruct`s without values.
      **head_options: options of the head's class; defaults are those of the published network.

    Raises:
      UserError: there is no such backbone, option, head or stage.
    """
    family, variant = get_variant(backbone, options)
    if head not in HEADS:
        raise UserError(f'There is no model.head "{head}"{did_you_mean(head, HEADS)}')
    head_options = _coerce_head_options(head, head_options)
    layer_options = {"dtype": dtype, "rngs": _AbstractRngs()}

    def construct() -> Model:
        stages = FAMILIES[family].stages(variant, inputs=in_channels, **layer_options)
        if out_stage is not None and out_stage not in stages:
            raise UserError(
                f'model.out_stage: there is no stage "{out_stage}" in {backbone}{did_you_mean(out_stage, stages)}'
            )
        names = tuple(stages)
        num_stages = names.index(out_stage) + 1 if out_stage else len(names)
        built = {name: stages[name] for name in names[:num_stages]}
        model = Model(family, variant, built, names[num_stages:], in_channels, remat)
        shapes = feature_shapes(model, image_size)
        if any(0 in shape for shape in shapes.values()):
            raise UserError(f"data.image_size={image_size} is too small for {backbone}: its last feature map is empty.")
        defaults = default_head_options(head, family, image_size)
        if auxiliary:
            defaults["auxiliary"] = _auxiliary_option(head, model, backbone, num_classes, shapes, layer_options)
        model.head = HEADS[head](shapes, num_classes, **defaults | head_options, **layer_options)
        return model

    model = nnx.eval_shape(construct)
    if rngs is not None:
        init_missing(model, rngs)
    return model


def default_head_options(head: str, family: str, image_size: int) -> dict[str, Any]:
    """Return the options of a head of `HEADS` that the backbone's family and the side of the input in pixels decide."""
    options = dict(getattr(FAMILIES[family], "HEAD_OPTIONS", {})) if head == "classifier" else {}
    if "side" in inspect.signature(HEADS[head].__init__).parameters:
        options["side"] = image_size
    return options


def head_option_types(head: str) -> dict[str, Any]:
    """Return the options that a user can set of a head of `HEADS`, and their types."""
    hints = typing.get_type_hints(HEADS[head].__init__)
    parameters = inspect.signature(HEADS[head].__init__).parameters.values()
    reserved = ("side", "auxiliary", "dtype", "rngs")
    return {p.name: hints[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in reserved}


def _coerce_head_options(head: str, options: Mapping[str, Any]) -> dict[str, Any]:
    hints = head_option_types(head)
    for name in options:
        if name not in hints:
            raise UserError(f'model.head_options: {head} has no "{name}"{did_you_mean(name, hints)}')
    return {name: coerce(value, hints[name], f"model.head_options.{name}") for name, value in options.items()}


def init_missing(model: Model, rngs: nnx.Rngs) -> None:
    """Initialize, in place, all variables of a model that have no value yet; reads the stream `params`."""
    family_initializers = getattr(FAMILIES[model.family], "INITIALIZERS", {})
    head_initializers = getattr(model.head, "initializers", {})
    initializers.init_missing_params(model, rngs.params(), family_initializers, head_initializers)


class _AbstractRngs:
    """Replaces nnx.Rngs where layers are built without values: counting keys is slow under tracing."""

    def __getattr__(self, stream: str):
        return lambda: None


def _auxiliary_option(
    head: str, model: Model, backbone: str | Any, num_classes: int, shapes: Mapping, layer_options: Mapping
) -> bool | dict[str, tuple[str, nnx.Module]]:
    """Return the head's option `auxiliary`: {name: (stage, classifier)} for a classifier, True for other heads."""
    if "auxiliary" not in inspect.signature(HEADS[head].__init__).parameters:
        raise UserError(f"model.aux_weight: the head {head} has no auxiliary outputs.")
    if head != "classifier":
        return True
    make_auxiliary = getattr(FAMILIES[model.family], "auxiliary", None)
    classifiers = make_auxiliary(model.config, num_classes, **layer_options) if make_auxiliary else {}
    if not classifiers:
        raise UserError(f"model.aux_weight: {backbone} has no auxiliary classifiers.")
    classifiers = {name: (stage, module) for name, (stage, module) in classifiers.items() if stage in shapes}
    # A feature map can be too small for a classifier. Report it now rather than in the first training step.
    for stage, module in classifiers.values():
        nnx.eval_shape(lambda m, x: m(x), module, jax.ShapeDtypeStruct((1, *shapes[stage]), jnp.float32))
    return classifiers


def feature_shapes(model: Model, side: int) -> dict[str, tuple[int, int, int]]:
    """Return the shape [H, W, C] of every stage's features, in stage order, for images of `side` × `side` pixels."""
    image = jax.ShapeDtypeStruct((1, side, side, model.in_channels), jnp.float32)
    features = nnx.eval_shape(lambda m, x: m.features(x), model, image)
    return {name: features[name].shape[1:] for name in model.stage_names}
