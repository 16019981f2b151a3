"""Many steps of one or more runs as one compiled program: the host looks in between programs, never between steps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from tljax.distributed.mesh import constrain
from tljax.models.params import Variables
from tljax.ops.convolution import inference_options
from tljax.train.step import StepInputs, StepSpec, TrainState, make_step_fn


@functools.lru_cache(maxsize=64)
def make_multi_step(spec: StepSpec, runs: int, how: str, resident: bool, shard: str = "none"):
    """Compiles `steps(states, frozen, own, data, block, now, hyper, key, given, count) → (states, metrics)`.

    Runs share their batches and random keys, and differ in numbers and in the leaves that these have changed; arrays of
    each have a leading axis of `runs`. The states are donated.

    `frozen` are leaves that no run has changed, `own` those that each has changed before this phase and that are frozen
    in it. `data` and `block` are of `tljax.train.batches.BatchStream`. `now` are the numbers of each step, `lr` [steps,
    runs] and `progress` [steps], `hyper` the others, each with a leading axis. `count` of the steps are taken; their
    `metrics`, as of `make_step_fn`, are [steps, runs, ...].

    Args:
      spec: of the step.
      runs: how many.
      how: "vmap" computes all runs at once, "map" one after another within each step.
      resident: whether `data` are the arrays and `block` rows of them, or `block` the batches.
      shard: how leaves live on the devices, as in `tljax.distributed.mesh.DeviceMesh`.
    """
    # Compiled on its own, it is traced once, for the shapes of its metrics and for the loop.
    step, each = jax.jit(make_step_fn(spec)), over_replicas(runs, how)

    def steps(
        states: TrainState, frozen: Variables, own: Variables, data, block, now, hyper, key, given: StepInputs, count
    ):
        def batch_of(i: jax.Array) -> dict[str, jax.Array]:
            taken = {name: x[i] for name, x in block.items()}
            if not resident:
                return taken
            rows = {name: taken["unlabelled" if name == "unlabelled" else "row"] for name in data}
            return {name: x[rows[name] % len(x)] for name, x in data.items()}

        def one(batch, progress, changing):
            state, own, lr, numbers = changing
            return step(state, frozen | own, batch, {**numbers, "lr": lr, "progress": progress}, key, given)

        def body(i: jax.Array, carry):
            states, seen = carry
            batch, lr, progress = batch_of(i), now["lr"][i], now["progress"][i]
            states, metrics = each(functools.partial(one, batch, progress), (states, own, lr, hyper))
            states = constrain(states, shard)
            return states, jax.tree.map(lambda all_, new: all_.at[i].set(new), seen, metrics)

        if len(now["lr"]) == 1:  # no loop around a single step
            only = functools.partial(one, batch_of(0), now["progress"][0])
            states, metrics = each(only, (states, own, now["lr"][0], hyper))
            return constrain(states, shard), jax.tree.map(lambda x: x[None], metrics)
        shapes = jax.eval_shape(
            lambda: each(functools.partial(one, batch_of(0), 0.0), (states, own, now["lr"][0], hyper))
        )
        room = jax.tree.map(lambda x: jnp.zeros((len(now["lr"]), *x.shape), x.dtype), shapes[1])
        return jax.lax.fori_loop(0, count, body, (states, room))

    return jax.jit(steps, donate_argnums=0, compiler_options=spec.compiler_options)


@functools.lru_cache(maxsize=64)
def make_multi_predict(predict: Callable, runs: int, how: str):
    """Compiles `predicts((own, frozen), batch) → {name: [B, runs, ...]}`, from one of `make_predict`."""
    each = over_replicas(runs, how)

    def predicts(leaves: tuple[Variables, Variables], batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        own, frozen = leaves
        answers = each(lambda changed: predict.__wrapped__(frozen | changed, batch), own)
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), answers)

    return jax.jit(predicts, compiler_options=inference_options())


def over_replicas(runs: int, how: str) -> Callable:
    """`each(function, tree)`: a function of one run's part of a tree, over all runs."""
    if runs > 1:
        return {"vmap": lambda f, x: jax.vmap(f)(x), "map": lambda f, x: jax.lax.map(f, x)}[how]

    def alone(function: Callable, tree):
        # No batching rule has a say in how one run is computed.
        return jax.tree.map(lambda x: x[None], function(jax.tree.map(lambda x: x[0], tree)))

    return alone
