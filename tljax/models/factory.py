"""Create a model by name: the stages of a backbone, and a head on their feature maps."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tljax import plugins
from tljax.config.fields import coerce
from tljax.errors import UserError, did_you_mean
from tljax.models import custom, initializers
from tljax.models.backbones import FAMILIES, get_family
from tljax.models.heads import get_head
from tljax.models.model import Model, feature_shapes


def list_backbones() -> list[str]:
    """Return the names of all backbones."""
    return [name for family in FAMILIES.values() for name in family.VARIANTS]


def get_variant(backbone: str | Any, options: Mapping[str, Any] = MappingProxyType({})) -> tuple[str, Any]:
    """Return the family of a backbone and its variant.

    Args:
      backbone: name, `FILE.py:NAME`, or a `Variant` of a family.
      options: fields of the variant to replace.

    Raises:
      UserError: there is no such backbone or option.
    """
    family, variant = _find_variant(backbone)
    hints = typing.get_type_hints(type(variant))
    for name in options:
        if name not in hints:
            raise UserError(f'model.options: {family} has no "{name}"{did_you_mean(name, hints)}')
    values = {name: coerce(value, hints[name], f"model.options.{name}") for name, value in options.items()}
    return family, dataclasses.replace(variant, **values)


def _find_variant(backbone: str | Any) -> tuple[str, Any]:
    for family, module in FAMILIES.items():
        if isinstance(backbone, module.Variant):
            return family, backbone
        if isinstance(backbone, str) and backbone in module.VARIANTS:
            return family, module.VARIANTS[backbone]
    if isinstance(backbone, str) and plugins.is_plugin(backbone):
        return custom.load_variant(backbone)
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
      backbone: name, e.g. "vgg16", `FILE.py:NAME` for a custom one, or a family's variant such as
        `vgg.Variant(blocks=((8,), (16, 16)))`.
      num_classes: outputs of the head; 0: a classifier returns the features before its last layer.
      head: key of `HEADS`, or `FILE.py:NAME` for a custom one.
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
    head_options = _coerce_head_options(head, head_options)
    is_custom = family not in FAMILIES or plugins.is_plugin(head)

    def construct() -> Model:
        # Custom modules may contain Flax's own layers, which need keys.
        layer_options = {"dtype": dtype, "rngs": nnx.Rngs(0) if is_custom else _AbstractRngs()}
        stages = get_family(family).stages(variant, inputs=in_channels, **layer_options)
        names = _stages_to_build(backbone, stages, out_stage)
        unused = tuple(name for name in stages if name not in names)
        model = Model(family, variant, {name: stages[name] for name in names}, unused, in_channels, remat)
        if is_custom:
            custom.check_stage_outputs(backbone, model, image_size)
        shapes = feature_shapes(model, image_size)
        if any(0 in shape for shape in shapes.values()):
            raise UserError(f"data.image_size={image_size} is too small for {backbone}: its last feature map is empty.")
        defaults = default_head_options(head, family, image_size)
        if auxiliary:
            defaults["auxiliary"] = _auxiliary_option(head, model, backbone, num_classes, shapes, layer_options)
        model.head = get_head(head)(shapes, num_classes, **defaults | head_options, **layer_options)
        return model

    model = nnx.eval_shape(construct)
    if is_custom:
        custom.check_model(backbone, head, model, image_size)
    if rngs is not None:
        init_missing(model, rngs)
    return model


def _stages_to_build(backbone: str | Any, stages: Mapping[str, nnx.Module], out_stage: str | None) -> list[str]:
    """Return the names of the stages up to `out_stage`; None: of all stages."""
    custom.check_stages(backbone, stages)
    names = list(stages)
    if out_stage is None:
        return names
    if out_stage not in stages:
        raise UserError(
            f'model.out_stage: there is no stage "{out_stage}" in {backbone}{did_you_mean(out_stage, stages)}'
        )
    return names[: names.index(out_stage) + 1]


def default_head_options(head: str, family: str, image_size: int) -> dict[str, Any]:
    """Return the options of a head that the backbone's family and the side of the input in pixels decide."""
    options = dict(getattr(get_family(family), "HEAD_OPTIONS", {})) if head == "classifier" else {}
    if "side" in inspect.signature(get_head(head).__init__).parameters:
        options["side"] = image_size
    return options


def head_option_types(head: str) -> dict[str, Any]:
    """Return the options that a user can set of a head, and their types."""
    constructor = get_head(head).__init__
    hints = typing.get_type_hints(constructor)
    parameters = inspect.signature(constructor).parameters.values()
    reserved = ("side", "auxiliary", "dtype", "rngs")
    options = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in reserved]
    return {p.name: hints.get(p.name, type(p.default)) for p in options}


def _coerce_head_options(head: str, options: Mapping[str, Any]) -> dict[str, Any]:
    hints = head_option_types(head)
    for name in options:
        if name not in hints:
            raise UserError(f'model.head_options: {head} has no "{name}"{did_you_mean(name, hints)}')
    return {name: coerce(value, hints[name], f"model.head_options.{name}") for name, value in options.items()}


def init_missing(model: Model, rngs: nnx.Rngs) -> None:
    """Initialize, in place, all variables of a model that have no value yet; reads the stream `params`."""
    family_initializers = getattr(get_family(model.family), "INITIALIZERS", {})
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
    if "auxiliary" not in inspect.signature(get_head(head).__init__).parameters:
        raise UserError(f"model.aux_weight: the head {head} has no auxiliary outputs.")
    if head != "classifier":
        return True
    make_auxiliary = getattr(get_family(model.family), "auxiliary", None)
    classifiers = make_auxiliary(model.config, num_classes, **layer_options) if make_auxiliary else {}
    if not classifiers:
        raise UserError(f"model.aux_weight: {backbone} has no auxiliary classifiers.")
    classifiers = {name: (stage, module) for name, (stage, module) in classifiers.items() if stage in shapes}
    # A feature map can be too small for a classifier. Report it now rather than in the first training step.
    for stage, module in classifiers.values():
        nnx.eval_shape(lambda m, x: m(x), module, jax.ShapeDtypeStruct((1, *shapes[stage]), jnp.float32))
    return classifiers
