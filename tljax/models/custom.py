"""Checks of backbones and heads that are defined in a file of the user, with one-line errors."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tljax import plugins
from tljax.errors import UserError
from tljax.models import params as params_lib
from tljax.models.backbones import FAMILIES, get_family
from tljax.models.layers import BatchNorm
from tljax.models.model import Model

# Attributes of a `Model`, which a stage cannot have as its name.
_RESERVED = ("family", "config", "in_channels", "remat", "stage_names", "unused_stages", "head")


def load_variant(spec: str) -> tuple[str, Any]:
    """Return family and variant of a custom backbone.

    Args:
      spec: `FILE.py:NAME`. NAME is an instance of a frozen dataclass; the file also has the function `stages` and
        optionally what else a family's module may have (`tljax.models.backbones`).

    Returns:
      The path of the file, and the variant; for a variant of a built-in family, the name of that family.

    Raises:
      UserError: NAME is not a variant, or the file has no suitable function `stages`.
    """
    variant = plugins.load_plugin(spec, "backbone")
    for name, module in FAMILIES.items():
        if isinstance(variant, module.Variant):
            return name, variant
    kind = type(variant).__name__ if not isinstance(variant, type) else f"the class {variant.__name__}"
    frozen = getattr(type(variant), "__dataclass_params__", None)
    if isinstance(variant, type) or frozen is None or not frozen.frozen:
        raise UserError(f"{spec} is not a backbone: it must be an instance of a frozen dataclass, got {kind}.")
    try:
        hash(variant)
    except TypeError as error:
        raise UserError(
            f"{spec}: all fields must be hashable, for example tuples instead of lists: {error}."
        ) from error
    file = plugins.plugin_file(spec)
    _check_stages_function(file, get_family(file))
    return file, variant


def _check_stages_function(file: str, family: ModuleType) -> None:
    function = getattr(family, "stages", None)
    options = {"inputs": 3, "dtype": None, "rngs": None}
    if not callable(function) or not plugins.accepts(function, None, **options):
        raise UserError(f"{file} must define the function stages(variant, *, inputs, dtype, rngs) for its backbones.")


def check_stages(backbone: Any, stages: Any) -> None:
    """Raise UserError unless the function `stages` of a family has returned modules by name."""
    if not isinstance(stages, dict) or not stages:
        kind = "an empty dict" if stages == {} else type(stages).__name__
        raise UserError(f"{backbone}: stages must return a dict of nnx.Module by stage name, got {kind}.")
    for name, stage in stages.items():
        if not isinstance(name, str) or not name.isidentifier() or name in _RESERVED or hasattr(Model, name):
            raise UserError(f"{backbone}: a stage cannot be named {name!r}: use names such as stem and stage1.")
        if not isinstance(stage, nnx.Module):
            raise UserError(f'{backbone}: the stage "{name}" must be an nnx.Module, got {type(stage).__name__}.')


def check_stage_outputs(backbone: Any, model: Model, side: int) -> None:
    """Raise UserError unless every stage of an abstract model returns features [B, H, W, C]."""
    image = jax.ShapeDtypeStruct((2, side, side, model.in_channels), jnp.float32)
    features = nnx.eval_shape(lambda m, x: m.features(x), model, image)
    for name, value in features.items():
        shape = getattr(value, "shape", None)
        if shape is None or len(shape) != 4 or shape[0] != 2:
            got = type(value).__name__ if shape is None else list(shape)
            raise UserError(f'{backbone}: the stage "{name}" must return features [B, H, W, C], got {got}.')


def check_model(backbone: Any, head: str, model: Model, side: int) -> None:
    """Raise UserError where the modules of a custom backbone or head do not fit the rest of the package.

    Args:
      backbone: as in the config, for messages.
      head: as in the config, for messages.
      model: abstract model with its head.
      side: side of the input in pixels.
    """
    for path, module in nnx.iter_modules(model):
        if isinstance(module, (nnx.BatchNorm, nnx.Dropout)) and not isinstance(module, BatchNorm):
            kind = type(module).__name__
            raise UserError(
                f"{backbone}, {head}: {'/'.join(map(str, path))} is an nnx.{kind}, which a phase cannot freeze: use "
                f"tljax.models.layers.{kind}."
            )
    for path, variable in params_lib.flatten_state(nnx.state(model)).items():
        if not isinstance(variable, (nnx.Param, nnx.BatchStat)):
            raise UserError(f"{backbone}, {head}: {path} must be an nnx.Param, got {type(variable).__name__}.")
    try:
        features = model.head.main_features
    except NotImplementedError:
        features = None
    if not isinstance(features, Mapping) or not set(features) <= set(model.stage_names):
        raise UserError(f"{head}: the property main_features must return {{stage: None or (height, width)}}.")
    image = jax.ShapeDtypeStruct((2, side, side, model.in_channels), jnp.float32)
    outputs = nnx.eval_shape(lambda m, x: m(x), model, image)
    if not isinstance(outputs, (jax.ShapeDtypeStruct, dict)):
        raise UserError(f"{head} must return logits or a dict of outputs, got {type(outputs).__name__}.")
