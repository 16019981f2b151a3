"""Runs that train as one program. Only this module knows that their arrays have a leading axis [N].

They share images, order and random keys, and differ in hyperparameters and in the variables that they have trained. One
run is N == 1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tljax.data import Split
from tljax.distributed.mesh import DeviceMesh
from tljax.errors import TrainingStopped
from tljax.features.extract import inference_batch_size
from tljax.inference.predict import predict_batches
from tljax.models.params import Variables
from tljax.ops.convolution import inference_options
from tljax.train.multi_step import StepBlock, make_multi_step
from tljax.train.optimizer import learning_rate
from tljax.train.plan import PhasePlan
from tljax.train.run_state import RunState, param_hashes
from tljax.train.state import StepInputs, StepSpec, TrainState, init_state


class Replicas:
    """The runs and the arrays of one training.

    Args:
      runs: at the same step of the same phase, with plans that differ in numbers alone.
      variables: the model's initial values, on the devices; the runs share them.
      predict: the compiled forward pass of the model, (variables, batch) → predictions.
      mesh: the devices.
      mode: how several runs are computed, "vmap" (at once) or "map" (one after another).
    """

    def __init__(
        self, runs: Sequence[RunState], variables: Variables, predict: Callable, mesh: DeviceMesh, mode: str = "vmap"
    ):
        self.runs = list(runs)
        self.mesh = mesh
        self.mode = mode
        self._initial = variables
        self._predict = predict
        # What this training has changed, {path: [N, ...]}; of the rest, every run has the initial values.
        self._trained: Variables = {}

    def __len__(self) -> int:
        return len(self.runs)

    def resume(self) -> None:
        """Go back to the latest checkpoints; without one for every run, start from the beginning."""
        if all([run.resume() for run in self.runs]):
            latest = [run.checkpoints.restore_params(run.checkpoints.latest, self._initial) for run in self.runs]
            self._trained = stack(latest)

    def in_phase(self, index: int) -> bool:
        """Whether any run is still in this phase."""
        return bool(self._running(index))

    def _running(self, index: int) -> list[tuple[int, RunState]]:
        return [(i, run) for i, run in enumerate(self.runs) if run.in_phase(index)]

    def first(self, index: int) -> RunState:
        """Return the first run in a phase: step and data position are the same for all of them."""
        return self._running(index)[0][1]

    def variables(self) -> Variables:
        """Return the current variables of the first run."""
        return self._initial | unstack(self._trained, 0)

    def start_phase(self, index: int, inputs: StepInputs) -> tuple[TrainState, StepInputs]:
        """Return the state at the current step of a phase, and the inputs with the frozen variables.

        `inputs.frozen` then has the variables that the runs share; those that each run has trained before are kept
        here. The frozen variables are hashed, for `save` to compare them at the end of the phase.
        """
        plan = self.runs[0].plans[index]
        new = {path: self._initial[path] for path in plan.changing if path not in self._trained}
        trained = self._trained | broadcast(new, len(self))
        params, batch_stats, frozen = plan.partition(self._initial | trained, inputs.channel_index)
        self._frozen = {path: x for path, x in frozen.items() if path not in trained}
        self._own_frozen = {path: x for path, x in frozen.items() if path in trained}
        self._hparams = jax.tree.map(lambda *x: np.stack(x), *(run.plans[index].hparams for run in self.runs))
        self._index, self._plan, self._channels = index, plan, inputs.channel_index
        state = _init_states(plan.spec, len(self))(params, batch_stats, self._hparams)
        if self.first(index).progress.step:
            state = self._restore(self.mesh.put_variables(state))
        self._trained = trained
        shared = param_hashes(self._frozen, self._channels)
        for i, run in self._running(index):
            run.start_phase(shared | param_hashes(unstack(self._own_frozen, i), self._channels))
        return self.mesh.put_variables(state), inputs._replace(frozen=self._frozen)

    def _restore(self, state: TrainState) -> TrainState:
        """Return the state of the latest checkpoints, in the shapes of a new one."""
        like = unstack(_resume_tree(state), 0)
        saved = stack([run.checkpoints.restore(run.checkpoints.latest, like) for run in self.runs])
        restored = state._replace(opt_state=saved["opt_state"], step=saved["step"])
        if state.ema:  # the checkpoint's own parameters are the average
            average = state.params | state.batch_stats
            return restored._replace(params=saved["raw_params"], batch_stats=saved["raw_batch_stats"], ema=average)
        return restored

    def compile_steps(self, plan: PhasePlan, inputs: StepInputs) -> Callable:
        """Return the program `(state, block, key) → (state, metrics [N, steps, ...])`."""
        program = compile_replicas(plan.spec, len(self), self.mode, self.mesh.sharding)

        def run_steps(state: TrainState, block: StepBlock, key: jax.Array):
            each = self._own_frozen, block.schedule["lr"], self._hparams
            return program(state, each, inputs, block, key)

        return run_steps

    def schedule(self, step: int, room: int) -> dict[str, np.ndarray]:
        """Return the hyperparameters of the next steps: `lr` [N, room] and `progress` [room], from 0 to 1."""
        plans = [run.plans[self._index] for run in self.runs]
        steps = range(step, min(step + room, self._plan.steps))
        lr, progress = np.zeros((len(self), room), np.float32), np.zeros(room, np.float32)
        for i, plan in enumerate(plans):
            lr[i, : len(steps)] = [learning_rate(plan.optim, s, plan.steps, plan.steps_per_epoch) for s in steps]
        progress[: len(steps)] = [s / self._plan.steps for s in steps]
        return {"lr": lr, "progress": progress}

    def advance(self, steps: int) -> None:
        """Count steps that were sent to the device."""
        for _, run in self._running(self._index):
            run.advance(steps)

    def record(self, metrics: Mapping[str, np.ndarray]) -> tuple[float, float]:
        """Add the metrics [N, steps, ...] to each run's sums; return the best last loss and the best training metric.

        Raises:
          TrainingStopped: a loss or update is not finite and the run is alone. Of several, only the failing run stops.
        """
        for i, run in self._running(self._index):
            try:
                run.record({name: x[i] for name, x in metrics.items()})
            except TrainingStopped as failure:
                if len(self) == 1:
                    raise
                run.failure = failure
        return float(metrics["loss"][:, -1].min()), float(metrics["correct"].sum(1).max())

    def update(self, state: TrainState) -> None:
        """Take over the variables of a state: the average of the weights where there is one."""
        changing = state.ema or state.params | state.batch_stats
        self._trained = self._plan.combine(changing, self._own_frozen, self._channels)

    def evaluate(self, arrays: Mapping[str, np.ndarray], split: Split) -> list[dict | None]:
        """Return each run's metrics on a split; `arrays` are its images or cached features, with the targets."""
        side = self._plan.spec.preprocess.size
        size = inference_batch_size(side, self.mesh)
        if len(self) == 1:  # the same program as for the final evaluation
            variables = self._frozen | unstack(self._trained, 0)
            outputs = [predict_batches(self._predict, variables, arrays, size, self.mesh)]
        else:
            predict = _compile_predict(self._predict, len(self), self.mode)
            rows = predict_batches(predict, (self._trained, self._frozen), arrays, size, self.mesh)
            outputs = [{name: x[:, i] for name, x in rows.items()} for i in range(len(self))]
        running = dict(self._running(self._index))
        return [
            running[i].task.compute_metrics(predictions, split, side) if i in running else None
            for i, predictions in enumerate(outputs)
        ]

    def save(self, state: TrainState, position: Any, metrics: list[dict | None] | None) -> None:
        """Make the checkpoints, with the metrics of a validation if there was one; end the phase of finished runs.

        Raises:
          TrainingStopped: a phase has changed a frozen variable.
        """
        trainable = sum(x.size for x in state.params.values()) // len(self)
        shared = functools.cache(lambda: param_hashes(self._frozen, self._channels))
        frozen_paths = set(self._own_frozen)
        for i, run in self._running(self._index):
            arrays = unstack({"params": self._trained, **_resume_tree(state)}, i)
            own = {path: arrays["params"][path] for path in frozen_paths}

            def hashes(own=own):
                return shared() | param_hashes(own, self._channels)

            mark = run.record_validation(metrics[i]) if metrics is not None else None
            run.save(arrays, position, mark, hashes, trainable)

    def end_phase(self) -> None:
        """Take over the variables that each run had when its phase ended; early stopping ends some before others."""
        if len(self) > 1:
            self._trained = stack([run.final_params or unstack(self._trained, i) for i, run in enumerate(self.runs)])

    def wait(self) -> None:
        """Wait until all checkpoints are written."""
        for run in self.runs:
            run.checkpoints.wait()


def over_replicas(count: int, mode: str) -> Callable:
    """Return `each(function, tree)`, which maps a function of one run's part over the leading axis of a tree."""
    if count > 1:
        return {"vmap": lambda f, x: jax.vmap(f)(x), "map": lambda f, x: jax.lax.map(f, x)}[mode]

    def alone(function: Callable, tree):
        # Without batching rules, which could change how a single run is computed.
        return jax.tree.map(lambda x: x[None], function(jax.tree.map(lambda x: x[0], tree)))

    return alone


@functools.lru_cache(maxsize=64)
def compile_replicas(spec: StepSpec, count: int, mode: str, sharding: str) -> Callable:
    """Compile `program(state, (frozen, lr, hparams), inputs, block, key)`, with [N, ...] arrays in the first two."""
    multi_step = make_multi_step(spec, sharding)
    each = over_replicas(count, mode)

    def program(state: TrainState, per_run: tuple, inputs: StepInputs, block: StepBlock, key: jax.Array):
        def one(replica):
            state, (frozen, lr, hparams) = replica
            own_inputs = inputs._replace(frozen=inputs.frozen | frozen)
            own_block = block._replace(schedule={**block.schedule, "lr": lr})
            return multi_step(state, own_inputs, own_block, hparams, key)

        return each(one, (state, per_run))

    return jax.jit(program, donate_argnums=0, compiler_options=spec.compiler_options)


@functools.lru_cache(maxsize=64)
def _compile_predict(predict: Callable, count: int, mode: str) -> Callable:
    """Compile `predict((trained [N, ...], frozen), batch) → {name: [B, N, ...]}`."""
    each = over_replicas(count, mode)

    def predict_all(variables: tuple[Variables, Variables], batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        trained, frozen = variables
        outputs = each(lambda own: predict.__wrapped__(frozen | own, batch), trained)
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), outputs)

    return jax.jit(predict_all, compiler_options=inference_options())


@functools.lru_cache(maxsize=64)
def _init_states(spec: StepSpec, count: int) -> Callable:
    return jax.jit(lambda *each: over_replicas(count, "vmap")(lambda x: init_state(spec, *x), each))


# Each a program of its own: a tree has many arrays.
@functools.partial(jax.jit, static_argnums=1)
def broadcast(tree: Any, count: int) -> Any:
    """Return `count` copies of a tree, along a new leading axis."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), tree)


@jax.jit
def unstack(tree: Any, i: int) -> Any:
    """Return run i's part of a tree."""
    return jax.tree.map(lambda x: x[i], tree)


@jax.jit
def stack(trees: list) -> Any:
    """Return the trees of several runs as one, along a new leading axis."""
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def _resume_tree(state: TrainState) -> dict:
    """Return what a checkpoint holds besides the model: with an average, the weights that are averaged too."""
    raw = {"raw_params": state.params, "raw_batch_stats": state.batch_stats} if state.ema else {}
    return {"opt_state": state.opt_state, "step": state.step, **raw}
