"""Many steps as one compiled program: the host acts between programs, never between steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tljax.distributed.mesh import constrain
from tljax.train.state import StepInputs, StepSpec, TrainState
from tljax.train.step import make_step_fn


class StepBlock(NamedTuple):
    """What the steps of one program read.

    Attributes:
      data: arrays that live on the device; empty if `batches` holds the batches themselves.
      batches: {name: [steps, B, ...]}, the batches, or where `data` is on the device the indices of their rows.
      schedule: {name: [steps]}, the hyperparameters that differ from step to step: `lr` and `progress`.
      count: how many of the steps are taken; the arrays may have room for more.
    """

    data: Mapping[str, jax.Array]
    batches: Mapping[str, jax.Array]
    schedule: Mapping[str, jax.Array]
    count: int | jax.Array

    def batch(self, i: int | jax.Array) -> dict[str, jax.Array]:
        """Return the batch of step i."""
        batch = {name: x[i] for name, x in self.batches.items()}
        if not self.data:
            return batch
        rows = {name: batch["unlabelled" if name == "unlabelled" else "row"] for name in self.data}
        return {name: x[rows[name] % len(x)] for name, x in self.data.items()}


def make_multi_step(spec: StepSpec, sharding: str = "none") -> Callable:
    """Return the function `multi_step(state, inputs, block, hparams, key) → (state, metrics)`.

    `metrics` are those of `make_step_fn`, [steps, ...]; rows from `block.count` on are zero.

    Args:
      spec: of the step.
      sharding: where the state lives, as in `tljax.distributed.mesh.DeviceMesh`.
    """
    # A jit of its own, so that it is traced once for both the shapes of its metrics and the loop.
    step_fn = jax.jit(make_step_fn(spec))

    def multi_step(state: TrainState, inputs: StepInputs, block: StepBlock, hparams: Mapping, key: jax.Array):
        def take_step(i: int | jax.Array, state: TrainState):
            now = {name: x[i] for name, x in block.schedule.items()}
            state, metrics = step_fn(state, inputs, block.batch(i), {**hparams, **now}, key)
            return constrain(state, sharding), metrics

        def body(i: jax.Array, carry):
            state, metrics = carry
            state, new = take_step(i, state)
            return state, jax.tree.map(lambda all_, row: all_.at[i].set(row), metrics, new)

        room = len(block.schedule["lr"])
        if room == 1:  # no loop around a single step
            state, metrics = take_step(0, state)
            return state, jax.tree.map(lambda x: x[None], metrics)
        shapes = jax.eval_shape(lambda: take_step(0, state))[1]
        empty = jax.tree.map(lambda x: jnp.zeros((room, *x.shape), x.dtype), shapes)
        return jax.lax.fori_loop(0, block.count, body, (state, empty))

    return multi_step
