"""Many steps as one compiled program: the host acts between programs, never between steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tljax.distributed.mesh import constrain
from tljax.train.state import StepInputs, StepSpec, TrainState
from tljax.train.step import make_step_fn


class StepBlock(NamedTuple):
    """Inputs of the steps of one program.

    Attributes:
      data: arrays on the device, or {} if `batches` contains the batches themselves.
      batches: {name: [steps, B, ...]}, the batches, or the indices of their rows in `data`.
      schedule: {name: [steps]}, the hyperparameters that differ between steps: `lr` and `progress`.
      count: number of steps to take, at most the length of the arrays.
    """

    data: Mapping[str, jax.Array]
    batches: Mapping[str, jax.Array]
    schedule: Mapping[str, jax.Array | np.ndarray]
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

    `metrics` are those of `make_step_fn`, stacked to [steps, ...]; rows from `block.count` on are zero.

    Args:
      spec: static configuration of the step.
      sharding: sharding of the state, as in `tljax.distributed.mesh.DeviceMesh`.
    """
    # jit, so that the step is traced once for both the shapes of its metrics and the loop.
    step_fn = jax.jit(make_step_fn(spec))

    def multi_step(state: TrainState, inputs: StepInputs, block: StepBlock, hparams: Mapping, key: jax.Array):
        def take_step(i: int | jax.Array, state: TrainState):
            scheduled = {name: x[i] for name, x in block.schedule.items()}
            state, metrics = step_fn(state, inputs, block.batch(i), {**hparams, **scheduled}, key)
            return constrain(state, sharding), metrics

        def body(i: jax.Array, carry):
            state, metrics = carry
            state, step_metrics = take_step(i, state)
            return state, jax.tree.map(lambda rows, row: rows.at[i].set(row), metrics, step_metrics)

        max_steps = len(block.schedule["lr"])
        if max_steps == 1:  # no loop around a single step
            state, metrics = take_step(0, state)
            return state, jax.tree.map(lambda x: x[None], metrics)
        shapes = jax.eval_shape(lambda: take_step(0, state))[1]
        empty = jax.tree.map(lambda x: jnp.zeros((max_steps, *x.shape), x.dtype), shapes)
        return jax.lax.fori_loop(0, block.count, body, (state, empty))

    return multi_step
