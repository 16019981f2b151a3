"""Trees of several runs as one, with a leading axis; each function is a program, for a tree has many leaves."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from tljax.models.params import Variables
from tljax.train.multi_step import over_replicas
from tljax.train.step import StepSpec, TrainState, init_state


@functools.partial(jax.jit, static_argnums=1)
def broadcast(leaves: Variables, runs: int) -> Variables:
    """As many copies of leaves."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (runs, *x.shape)), leaves)


@jax.jit
def unstack(tree: Any, run: int) -> Any:
    """What one run has."""
    return jax.tree.map(lambda x: x[run], tree)


@jax.jit
def stack(trees: list) -> Any:
    """The trees of several runs."""
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def init_states(spec: StepSpec, learned: Variables, moving: Variables, hyper: dict) -> TrainState:
    """The states before the first step."""
    return _begun(spec, len(hyper["eps"]))(learned, moving, hyper)


@functools.lru_cache(maxsize=64)
def _begun(spec: StepSpec, runs: int):
    return jax.jit(lambda *each: over_replicas(runs, "vmap")(lambda x: init_state(spec, *x), each))
