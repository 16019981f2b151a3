"""The Optax optimizer of the trainable parameters, and learning-rate schedules.

The structure of the optimizer is static; all numbers are arguments of the compiled step, so that runs that differ only
in numbers share one program.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax

from tljax import plugins
from tljax.config import OptimConfig
from tljax.errors import UserError
from tljax.strategies import Masks, ParamGroup, masks_of_groups


class OptimizerSpec(NamedTuple):
    """The static structure of an optimizer.

    Attributes:
      name: a value of `optim.name`, or `FILE.py:NAME` of a function (hparams, masks) → GradientTransformation.
      momentum: whether gradients are accumulated.
      clip: whether the global norm is clipped.
      decay: whether there is weight decay.
    """

    name: str
    momentum: bool
    clip: bool
    decay: bool


def optimizer_spec(optim: OptimConfig) -> OptimizerSpec:
    """Return the static structure of the optimizer."""
    return OptimizerSpec(optim.name, bool(_momentum(optim)), optim.clip_norm is not None, optim.weight_decay > 0)


def optimizer_hparams(optim: OptimConfig) -> dict[str, float]:
    """Return the numbers of the optimizer, as the compiled step takes them, except the learning rate."""
    return {
        "momentum": _momentum(optim),
        "b1": optim.b1,
        "b2": optim.b2,
        "rho": optim.rho,
        # RMSprop in Keras uses 1e-7, the paper of Adam 1e-8.
        "eps": optim.eps or (1e-7 if optim.name == "rmsprop" else 1e-8),
        "clip_norm": optim.clip_norm or 0.0,
        "weight_decay": optim.weight_decay,
        "label_smoothing": optim.label_smoothing,
    }


def _scale_by_adam(hparams: Mapping[str, Any]) -> optax.GradientTransformation:
    return optax.scale_by_adam(hparams["b1"], hparams["b2"], hparams["eps"])


def _scale_by_rms(hparams: Mapping[str, Any]) -> optax.GradientTransformation:
    # As in Keras, eps is added inside the square root.
    return optax.scale_by_rms(hparams["rho"], hparams["eps"], eps_in_sqrt=True)


# Values of `optim.name`, with the scaling of gradients before momentum; None: there is none.
OPTIMIZERS: dict[str, Callable[[Mapping[str, Any]], optax.GradientTransformation] | None] = {
    "sgd": None,
    "momentum": None,
    "nesterov": None,
    "adam": _scale_by_adam,
    "adamw": _scale_by_adam,
    "rmsprop": _scale_by_rms,
}


def make_optimizer(
    spec: OptimizerSpec, hparams: Mapping[str, Any], groups: Mapping[str, ParamGroup]
) -> optax.GradientTransformation:
    """Return the optimizer: clipping, scaling, decoupled weight decay, and the learning rates of the groups.

    Args:
      spec: from `optimizer_spec`.
      hparams: numbers from `optimizer_hparams` and `lr`, floats or traced scalars. The structure of the optimizer state
        does not depend on them.
      groups: groups of the trainable parameters, by path.

    Raises:
      UserError: a custom optimizer is not a function, or returns something else.
    """
    masks = masks_of_groups(groups)
    if plugins.is_plugin(spec.name):
        return _custom_optimizer(spec.name, hparams, masks)
    chain = [optax.clip_by_global_norm(hparams["clip_norm"])] if spec.clip else []
    if (scaling := OPTIMIZERS[spec.name]) is not None:
        chain.append(scaling(hparams))
    if spec.momentum:
        chain.append(optax.trace(hparams["momentum"], nesterov=spec.name == "nesterov"))
    if spec.decay:

        def decays(params: Any) -> dict[str, bool]:
            # A function, because a layer with sliced parameters may have no trainable channel.
            return {path: masks.decay[path] for path in params}

        chain.append(optax.add_decayed_weights(hparams["weight_decay"], decays))
    chain.append(scale_by_multiplier(hparams["lr"], masks.lr_multiplier))
    return optax.chain(*chain)


def scale_by_multiplier(lr: jax.Array, multipliers: Mapping[str, float]) -> optax.GradientTransformation:
    """Return the transformation that scales updates by -lr times the multiplier of their parameter."""
    scales: dict[Any, optax.GradientTransformation] = {
        m: optax.scale(-lr * m) for m in sorted(set(multipliers.values()))
    }
    return optax.partition(scales, lambda params: {path: multipliers[path] for path in params})


def learning_rate(optim: OptimConfig, step: int, steps: int, steps_per_epoch: float) -> float:
    """Return the learning rate of a step, before the multipliers of the groups.

    Args:
      optim: optimizer config of the phase.
      step: index of the step within the phase, from 0.
      steps: length of the phase.
      steps_per_epoch: conversion of times that the config gives in epochs.
    """
    warmup = min(steps, round(optim.warmup_epochs * steps_per_epoch))
    if step < warmup:
        return optim.lr * (step + 1) / warmup
    if optim.schedule == "cosine":  # Loshchilov & Hutter 2017, without restarts
        return optim.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
    if optim.schedule == "step":
        return optim.lr * optim.step_factor ** sum(step >= round(e * steps_per_epoch) for e in optim.step_epochs)
    return optim.lr


def optimizer_bytes(opt_state: optax.OptState) -> int:
    """Return the size of the optimizer state in bytes, without step counters."""
    return int(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(opt_state) if x.ndim or x.size > 1))


def _momentum(optim: OptimConfig) -> float:
    default = 0.9 if optim.name in ("momentum", "nesterov") else 0.0
    return default if optim.momentum is None else optim.momentum


def _custom_optimizer(name: str, hparams: Mapping[str, jax.Array], masks: Masks) -> optax.GradientTransformation:
    make = plugins.load_plugin(name, "optimizer")
    if not callable(make) or not plugins.accepts(make, hparams, masks):
        kind = "a function of other arguments" if callable(make) else type(make).__name__
        raise UserError(f"optim.name={name!r} must be a function (hparams, masks), got {kind}.")
    optimizer = make(hparams, masks)
    if not isinstance(optimizer, optax.GradientTransformation):
        raise UserError(
            f"optim.name={name!r} must return an optax.GradientTransformation, got {type(optimizer).__name__}."
        )
    return optimizer
