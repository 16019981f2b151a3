"""Optax transformations over the learning leaves, and the schedules that feed them.

What shapes the program (which optimizer, clipping or not) is static; every number is an argument of the compiled
step, so runs that differ only in numbers share one program.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from tljax.config import OptimConfig
from tljax.strategies import ParamGroup


def optimizer_spec(optim: OptimConfig) -> tuple[str, bool, bool, bool]:
    """The part of the config that shapes the program: name, momentum, clipping and decay or not."""
    return optim.name, bool(_momentum(optim)), optim.clip_norm is not None, optim.weight_decay > 0


def optimizer_hparams(optim: OptimConfig) -> dict[str, float]:
    """The numbers of the config, as the compiled step takes them; the learning rate comes per step."""
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
    static: tuple[str, bool, bool, bool], hyper: Mapping[str, jax.Array], groups: Mapping[str, ParamGroup]
) -> optax.GradientTransformation:
    """Clipping, the optimizer's own scaling, decoupled decay, and each leaf's learning rate, in this order.

    Args:
      static: from `static_of`.
      hyper: from `hyper_of`, with `lr`, as floats or traced scalars; the state's structure does not depend on them.
      groups: of the learning leaves, by path.
    """
    name, momentum, clip, decay = static
    chain = [optax.clip_by_global_norm(hyper["clip_norm"])] if clip else []
    if name in ("adam", "adamw"):
        chain.append(optax.scale_by_adam(hyper["b1"], hyper["b2"], hyper["eps"]))
    if name == "rmsprop":
        # As in Keras: eps stands under the root.
        chain.append(optax.scale_by_rms(hyper["rho"], hyper["eps"], eps_in_sqrt=True))
    if momentum:
        chain.append(optax.trace(hyper["momentum"], nesterov=name == "nesterov"))
    if decay:
        mask = lambda leaves: {p: groups[p].decay for p in leaves}  # noqa: E731 - layers may have no learning neuron
        chain.append(optax.add_decayed_weights(hyper["weight_decay"], mask))
    chain.append(_scale_by_group(hyper["lr"], groups))
    return optax.chain(*chain)


def learning_rate(optim: OptimConfig, step: int, steps: int, steps_per_epoch: float) -> float:
    """The learning rate of a phase's step, before the groups' multipliers.

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


def optimizer_bytes(opt) -> int:
    """Bytes of the optimizer's moments; step counters do not count."""
    return int(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(opt) if x.ndim or x.size > 1))


def _momentum(optim: OptimConfig) -> float:
    default = 0.9 if optim.name in ("momentum", "nesterov") else 0.0
    return default if optim.momentum is None else optim.momentum


def _scale_by_group(lr: jax.Array, groups: Mapping[str, ParamGroup]) -> optax.GradientTransformation:
    def update(updates, state, params=None):
        return {p: jnp.asarray(-lr * groups[p].lr_multiplier, u.dtype) * u for p, u in updates.items()}, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
