"""Checks of combinations of config fields, each with a one-line error.

The dataclasses of the schema are typed as Any here: they need this module, not the other way round.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tljax.config.fields import from_dict
from tljax.config.renamed import renamed_hint
from tljax.errors import UserError, did_you_mean
from tljax.plugins import is_plugin

# Values of fields that also accept FILE.py:NAME. The tables are `tljax.train.optimizer.OPTIMIZERS` and
# `tljax.models.heads.HEADS`; the config does not import them, to be read without JAX.
OPTIMIZERS = ("sgd", "momentum", "nesterov", "adam", "adamw", "rmsprop")
HEADS = ("classifier", "unet", "fcn", "detector")

# Fields and sections that affect only what is written and where, not the result of a run.
OUTPUT_ONLY = ("workdir", "report", "features")


def validate(config: Any, fields: Sequence[str]) -> None:
    """Check combinations of fields.

    Args:
      config: a `Config`.
      fields: dotted names of all fields, which a sweep may vary.

    Raises:
      UserError: fields contradict each other, or a sweep varies something that is not a field.
    """
    for phase in config.strategy.phases:
        validate_phase(phase, config.optim)
    _raise_first([*_optim(config.optim, "optim"), *_data_and_model(config), *_images(config), *_strategy(config)])
    for name, values in config.sweep.items():
        _check_sweep(name, values, fields)


def swept_fields(sweep: Mapping) -> set[str]:
    """Return the dotted fields that a sweep varies, alone or in named settings."""
    labels = [values for values in sweep.values() if isinstance(values, Mapping)]
    named = [settings for values in labels for settings in values.values() if isinstance(settings, Mapping)]
    return {name for name, values in sweep.items() if not isinstance(values, Mapping)}.union(*named)


def _check_sweep(name: str, values: Any, fields: Sequence[str]) -> None:
    """Raise UserError unless an entry of a sweep is a field with values, or a label with named settings."""
    if isinstance(values, Mapping):
        if name in fields:
            raise UserError(f"sweep[{name!r}] must be a list of values, because {name} is a field, got {values!r}.")
        if not values or not all(isinstance(settings, Mapping) for settings in values.values()):
            raise UserError(f"sweep[{name!r}] must be {{name: {{dotted field: value}}}}, got {values!r}.")
    elif not isinstance(values, list) or not values:
        raise UserError(f"sweep[{name!r}] must be a list of one or more values, got {values!r}.")
    for dotted in sorted(swept_fields({name: values})):
        if dotted not in fields or dotted.split(".")[0] in ("sweep", *OUTPUT_ONLY):
            raise UserError(f'sweep cannot vary "{dotted}"{renamed_hint(dotted) or did_you_mean(dotted, fields)}')


def validate_phase(phase: Any, optim: Any) -> Any:
    """Return a phase with its fields converted to their types.

    Args:
      phase: a `Phase`, which a custom strategy may have created without checks.
      optim: the `OptimConfig` of the run, some fields of which the phase may change.

    Raises:
      UserError: a field is invalid or contradicts another one.
    """
    prefix = f"strategy.phases[{phase.name}]"
    checked = from_dict(type(phase), dataclasses.asdict(phase), f"{prefix}.")
    merged = {**dataclasses.asdict(optim), **checked.optim}
    _raise_first(_optim(from_dict(type(optim), merged, f"{prefix}.optim."), f"{prefix}.optim"))
    return checked


def _raise_first(checks: Iterable[tuple[bool, str]]) -> None:
    for failed, message in checks:
        if failed:
            raise UserError(message)


def _check_name(value: str, prefix: str, names: Sequence[str]) -> tuple[bool, str]:
    failed = value not in names and not is_plugin(value)
    return failed, f"{prefix} cannot be {value!r}{did_you_mean(value, names)}"


def _optim(optim: Any, prefix: str) -> Iterator[tuple[bool, str]]:
    yield _check_name(optim.name, f"{prefix}.name", OPTIMIZERS)
    yield (
        optim.momentum is not None and optim.name in ("adam", "adamw"),
        f"{prefix}.momentum has no effect with {prefix}.name={optim.name!r}: Adam uses {prefix}.b1.",
    )
    yield (
        optim.momentum == 0 and optim.name in ("momentum", "nesterov"),
        f"{prefix}.name={optim.name!r} needs {prefix}.momentum above 0; without momentum use 'sgd'.",
    )
    yield (
        optim.schedule == "step" and not optim.step_epochs,
        f"{prefix}.schedule='step' needs {prefix}.step_epochs, the epochs at which the learning rate decreases.",
    )


def _data_and_model(config: Any) -> Iterator[tuple[bool, str]]:
    data = config.data
    model = config.model
    yield _check_name(model.head, "model.head", HEADS)
    yield (
        data.split == "first_per_class" and data.labels_per_class is None,
        "data.split='first_per_class' needs data.labels_per_class, the number of images of each class.",
    )
    yield (
        data.unlabelled != 0
        and data.labels_per_class is None
        and data.num_train is None
        and not {"data.labels_per_class", "data.num_train"} & swept_fields(config.sweep),
        "data.unlabelled needs data.labels_per_class, or data.num_train for masks and boxes: without it every training "
        "image keeps its label.",
    )
    yield (
        len(set(data.classes)) != len(data.classes) or (len(data.classes) == 1 and model.head != "detector"),
        f"data.classes must name two or more different classes, got {data.classes}.",
    )
    yield (
        model.num_classes is not None and bool(data.classes) and model.num_classes != len(data.classes),
        f"model.num_classes ({model.num_classes}) differs from the {len(data.classes)} data.classes.",
    )
    yield (
        model.pool_size is not None and model.pool != "flatten",
        "model.pool_size has an effect only with model.pool='flatten': 'avg' averages over all locations.",
    )
    low, high = config.augment.scale
    yield not 0 < low <= high, f"augment.scale must be two factors above 0 in ascending order, got {(low, high)}."
    weights = config.optim.class_weights
    yield (
        any(weight < 0 for weight in weights) or (bool(weights) and sum(weights) == 0),
        f"optim.class_weights must not be negative or all 0, got {weights}.",
    )
    default = type(model)()
    classifier_fields = [
        name for name in ("pool", "pool_size", "hidden", "norm") if getattr(model, name) != getattr(default, name)
    ]
    yield (
        model.head != "classifier" and bool(classifier_fields),
        f"model.{''.join(classifier_fields[:1])} is for model.head='classifier': the options of {model.head} are in "
        "model.head_options.",
    )


def _images(config: Any) -> Iterator[tuple[bool, str]]:
    background = config.data.background
    yield (
        re.fullmatch("white|black|#[0-9a-fA-F]{6}", background) is None,
        f"data.background must be white, black or #rrggbb, got {background!r}.",
    )
    low, high = config.augment.crop_scale
    yield (
        not 0 < low <= high <= 1,
        f"augment.crop_scale must be two shares of the area, ascending, above 0 and up to 1, got {(low, high)}.",
    )


def _strategy(config: Any) -> Iterator[tuple[bool, str]]:
    strategy = config.strategy
    optim = config.optim
    train = config.train
    yield (
        optim.warmup_epochs >= train.epochs,
        f"optim.warmup_epochs ({optim.warmup_epochs}) must be shorter than train.epochs ({train.epochs}).",
    )
    yield (
        train.batch_size % train.grad_accum_steps != 0,
        f"train.batch_size={train.batch_size} cannot be divided into train.grad_accum_steps={train.grad_accum_steps} "
        "equal parts.",
    )
    yield (
        bool(strategy.phases) != (strategy.name == "custom"),
        "strategy.phases and strategy.name='custom' go together: set both or neither.",
    )
    yield (
        strategy.name == "layers" and not strategy.layers,
        "strategy.name='layers' needs strategy.layers, patterns of the trainable paths.",
    )
    # These strategies need a pretrained network; the others may start from random weights.
    pretrained = ("feature_extraction", "freeze_last", "layers", "lp_ft", "finetune", "gradual_unfreeze", "full")
    pretrained += ("micro", "micro_two_heads", "delta", "lwf")
    no_weights = config.model.weights is None and "model.weights" not in swept_fields(config.sweep)
    yield (
        no_weights and strategy.name in pretrained,
        f"strategy.name={strategy.name!r} adapts a pretrained network, but model.weights is not set: set it, or use "
        "'scratch'.",
    )
    yield (
        no_weights and optim.l2_sp > 0,
        "optim.l2_sp penalizes the distance from the pretrained weights, but model.weights is not set.",
    )
    yield (
        bool(strategy.losses) and strategy.name == "custom",
        "strategy.losses are for presets: with strategy.name='custom' each phase has its own losses.",
    )
