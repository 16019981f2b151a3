"""Combinations of fields that make no sense, each with the sentence that says so.

The schema, `tljax.config`, calls this; here its dataclasses are just objects with fields.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from tljax.config.fields import from_dict
from tljax.config.renamed import renamed_hint
from tljax.errors import UserError, did_you_mean

# Where a run lies and what is shown of it, which do not change what it is.
OUTPUT_ONLY = ("workdir", "report", "features")


def validate(config: Any, fields: Sequence[str]) -> None:
    """Raises UserError with the first sentence that applies to a `Config`; `fields` are the schema's dotted names."""
    for phase in config.strategy.phases:
        validate_phase(phase, config.optim)
    _raise_first([*_optim(config.optim, "optim"), *_data_and_model(config), *_strategy(config)])
    for dotted, values in config.sweep.items():
        if dotted not in fields or dotted.split(".")[0] in ("sweep", *OUTPUT_ONLY):
            raise UserError(f'sweep cannot vary "{dotted}"{renamed_hint(dotted) or did_you_mean(dotted, fields)}')
        if not isinstance(values, list) or not values:
            raise UserError(f"sweep[{dotted!r}] must be a list of one or more values, got {values!r}.")


def validate_phase(phase: Any, optim: Any) -> Any:
    """Returns a phase with its fields converted, or raises UserError with what is wrong with them.

    Args:
      phase: a `Phase`, perhaps made by a function of the user's.
      optim: of the run, some fields of which the phase may change.
    """
    where = f"strategy.phases[{phase.name}]"
    checked = from_dict(type(phase), dataclasses.asdict(phase), f"{where}.")
    merged = {**dataclasses.asdict(optim), **checked.optim}
    _raise_first(_optim(from_dict(type(optim), merged, f"{where}.optim."), f"{where}.optim"))
    return checked


def _raise_first(rules) -> None:
    for wrong, sentence in rules:
        if wrong:
            raise UserError(sentence)


def _optim(optim: Any, where: str) -> Iterator[tuple[bool, str]]:
    yield (
        optim.momentum is not None and optim.name in ("adam", "adamw"),
        f"{where}.momentum has no meaning for {where}.name={optim.name!r}: Adam's is {where}.b1.",
    )
    yield (
        optim.momentum == 0 and optim.name in ("momentum", "nesterov"),
        f"{where}.name={optim.name!r} needs {where}.momentum above 0: for plain descent take 'sgd'.",
    )
    yield (
        optim.schedule == "step" and not optim.step_epochs,
        f"{where}.schedule='step' needs {where}.step_epochs, the epochs at which the rate falls.",
    )


def _data_and_model(config: Any) -> Iterator[tuple[bool, str]]:
    data, model = config.data, config.model
    yield (
        data.split == "first_per_class" and data.labels_per_class is None,
        "data.split='first_per_class' needs data.labels_per_class, how many of each class.",
    )
    yield (
        data.unlabelled != 0
        and data.labels_per_class is None
        and data.num_train is None
        and not {"data.labels_per_class", "data.num_train"} & set(config.sweep),
        "data.unlabelled needs data.labels_per_class, or of masks and boxes data.num_train: without it every training "
        "picture keeps its label.",
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
        "model.pool_size has a meaning for model.pool='flatten' only: avg averages over the whole map.",
    )
    low, high = config.augment.scale
    yield not 0 < low <= high, f"augment.scale must be two factors above 0, the smaller one first, got {(low, high)}."
    weights = config.optim.class_weights
    yield (
        any(weight < 0 for weight in weights) or (bool(weights) and sum(weights) == 0),
        f"optim.class_weights must not be negative, nor all 0, got {weights}.",
    )
    of_classifier = [
        f for f in ("pool", "pool_size", "hidden", "norm") if getattr(model, f) != getattr(type(model)(), f)
    ]
    yield (
        model.head != "classifier" and bool(of_classifier),
        f"model.{''.join(of_classifier[:1])} is for model.head='classifier': what {model.head} can be asked for stands "
        "in model.head_options.",
    )


def _strategy(config: Any) -> Iterator[tuple[bool, str]]:
    strategy, optim, epochs = config.strategy, config.optim, config.train.epochs
    yield (
        optim.warmup_epochs >= epochs,
        f"optim.warmup_epochs ({optim.warmup_epochs}) must be shorter than train.epochs ({epochs}).",
    )
    train = config.train
    yield (
        train.batch_size % train.grad_accum_steps != 0,
        f"train.batch_size={train.batch_size} cannot be divided into train.grad_accum_steps={train.grad_accum_steps} "
        "equal parts.",
    )
    yield (
        bool(strategy.phases) != (strategy.name == "custom"),
        "strategy.phases and strategy.name='custom' go together: give both or neither.",
    )
    yield (
        strategy.name == "layers" and not strategy.layers,
        "strategy.name='layers' needs strategy.layers, patterns of the paths that learn.",
    )
    # What a pretrained network is for; the others may start from random weights.
    adapting = ("feature_extraction", "freeze_last", "layers", "lp_ft", "finetune", "gradual_unfreeze", "full")
    adapting += ("micro", "micro_two_heads", "delta", "lwf")
    without = config.model.weights is None and "model.weights" not in config.sweep
    yield (
        without and strategy.name in adapting,
        f"strategy.name={strategy.name!r} adapts a pretrained network, but model.weights is not set: set it, or take "
        "'scratch'.",
    )
    yield (
        without and optim.l2_sp > 0,
        "optim.l2_sp pulls towards the source weights, but model.weights is not set.",
    )
    yield (
        bool(strategy.losses) and strategy.name == "custom",
        "strategy.losses are for presets: the phases of strategy.name='custom' have their own.",
    )
