"""The Optax chain over the trainable parameters, and the schedules of the learning rate.

What shapes the program (which optimizer, clipping or not) is static; every number is an argument of the compiled
step, so runs that differ only in numbers share one program.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import optax

from tljax import plugins
from tljax.config import OptimConfig
from tljax.errors import UserError
from tljax.strategies import Masks, ParamGroup, masks_of_groups


class OptimizerSpec(NamedTuple):
    """What shapes an optimizer's program.

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
    """Return the part of the config that shapes the program."""
    return OptimizerSpec(optim.name, bool(_momentum(optim)), optim.clip_norm is not None, optim.weight_decay > 0)


def optimizer_hparams(optim: OptimConfig) -> dict[str, float]:
    """Return the numbers of the config, as the compiled step takes them; the learning rate comes per step."""
    return {
        "momentum": _momentum(optim),
        "b1": optim.b1,
        "b2": optim.b2,
        "rho": optim.rho,
        # Keras' RMSprop has 1e-7, Adam's paper 1e-8.
        "eps": optim.eps or (1e-7 if optim.name == "rmsprop" else 1e-8),
        "clip_norm": optim.clip_norm or 0.0,
        "weight_decay": optim.weight_decay,
        "label_smoothing": optim.label_smoothing,
    }


def make_optimizer(
    spec: OptimizerSpec, hparams: Mapping[str, jax.Array], groups: Mapping[str, ParamGroup]
) -> optax.GradientTransformation:
    """Return clipping, the optimizer's scaling, decoupled decay and the learning rates of the groups, in this order.

    Args:
      spec: from `optimizer_spec`.
      hparams: from `optimizer_hparams`, with `lr`, as floats or traced scalars; the structure of the optimizer's state
        does not depend on them.
      groups: of the trainable parameters, by path.
    """
    masks = masks_of_groups(groups)
    if plugins.is_plugin(spec.name):
        return _custom_optimizer(spec.name, hparams, masks)
    chain = [optax.clip_by_global_norm(hparams["clip_norm"])] if spec.clip else []
    if spec.name in ("adam", "adamw"):
        chain.append(optax.scale_by_adam(hparams["b1"], hparams["b2"], hparams["eps"]))
    if spec.name == "rmsprop":
        # As in Keras: eps stands under the root.
        chain.append(optax.scale_by_rms(hparams["rho"], hparams["eps"], eps_in_sqrt=True))
    if spec.momentum:
        chain.append(optax.trace(hparams["momentum"], nesterov=spec.name == "nesterov"))
    if spec.decay:
        # A function, because the layer of a sliced parameter may have no channel that trains.
        chain.append(optax.add_decayed_weights(hparams["weight_decay"], lambda p: {k: masks.decay[k] for k in p}))
    chain.append(scale_by_multiplier(hparams["lr"], masks.lr_multiplier))
    return optax.chain(*chain)


def scale_by_multiplier(lr: jax.Array, multipliers: Mapping[str, float]) -> optax.GradientTransformation:
    """Return the transformation that scales updates by -lr times the multiplier of their parameter."""
    scales = {m: optax.scale(-lr * m) for m in sorted(set(multipliers.values()))}
    return optax.partition(scales, lambda params: {path: multipliers[path] for path in params})


def learning_rate(optim: OptimConfig, step: int, steps: int, steps_per_epoch: float) -> float:
    """Return the learning rate of a phase's step, before the multipliers of the groups.

    Args:
      optim: of the phase.
      step: 0-based, within the phase.
      steps: length of the phase.
      steps_per_epoch: for the times that the config gives in epochs.
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
    """Return the bytes of the optimizer's moments; step counters do not count."""
    return int(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(opt_state) if x.ndim or x.size > 1))


def _momentum(optim: OptimConfig) -> float:
    default = 0.9 if optim.name in ("momentum", "nesterov") else 0.0
    return default if optim.momentum is None else optim.momentum


def _custom_optimizer(name: str, hparams: Mapping[str, jax.Array], masks: Masks) -> optax.GradientTransformation:
    make = plugins.load_plugin(name, "optimizer")
    if not callable(make):
        raise UserError(f"{name} is no optimizer: it must be a function, got {type(make).__name__}.")
    optimizer = make(hparams, masks)
    if not isinstance(optimizer, optax.GradientTransformation):
        raise UserError(f"{name} must return an optax.GradientTransformation, got {type(optimizer).__name__}.")
    return optimizer
