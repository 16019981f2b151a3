"""Training of N runs as one program. Only this module knows that their arrays have a leading axis [N].

The runs share images, their order and random keys; they differ in hyperparameters and trained variables. A single run
is N == 1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tljax.data import Split
from tljax.data.dataset import Images
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


def _latest_step(run: RunState) -> int:
    """Return the step of the checkpoint that a run resumes from."""
    assert run.checkpoints.latest is not None
    return run.checkpoints.latest


class Replicas:
    """The runs that train together, and their arrays.

    Args:
      runs: runs at the same step of the same phase, whose plans differ only in numbers.
      variables: initial variables of the model, on the devices, shared by the runs.
      predict: compiled forward pass of the model, (variables, batch) → predictions.
      mesh: the devices.
      mode: "vmap" to compute several runs at once, "map" to compute one after another.
    """

    def __init__(
        self, runs: Sequence[RunState], variables: Variables, predict: Callable, mesh: DeviceMesh, mode: str = "vmap"
    ):
        self.runs = list(runs)
        self.mesh = mesh
        self.mode = mode
        self._initial = variables
        self._predict = predict
        # Variables that training has changed, {path: [N, ...]}; all others have their initial values.
        self._trained: Variables = {}

    def __len__(self) -> int:
        return len(self.runs)

    def resume(self) -> None:
        """Resume from the latest checkpoints, or start from the beginning unless every run has one."""
        if all([run.resume() for run in self.runs]):
            latest = [run.checkpoints.restore_params(_latest_step(run), self._initial) for run in self.runs]
            self._trained = stack(latest)

    def in_phase(self, index: int) -> bool:
        """Return whether any run is still in this phase."""
        return bool(self._running(index))

    def _running(self, index: int) -> list[tuple[int, RunState]]:
        return [(i, run) for i, run in enumerate(self.runs) if run.in_phase(index)]

    def first(self, index: int) -> RunState:
        """Return the first run in a phase; step and data position are the same for all runs in it."""
        return self._running(index)[0][1]

    def variables(self) -> Variables:
        """Return the current variables of the first run."""
        return self._initial | unstack(self._trained, 0)

    def start_phase(self, index: int, inputs: StepInputs) -> tuple[TrainState, StepInputs]:
        """Return the state at the current step of a phase, and the inputs with the frozen variables.

        `inputs.frozen` has the frozen variables that the runs share; those that earlier phases trained, and that differ
        by run, stay in this object. Frozen variables are hashed here, and compared by `save` at the end of the phase.
        """
        plan = self.runs[0].plans[index]
        new = {path: self._initial[path] for path in plan.changing if path not in self._trained}
        trained = self._trained | broadcast(new, len(self))
        params, batch_stats, frozen = plan.partition(self._initial | trained, inputs.channel_index)
        self._frozen = {path: x for path, x in frozen.items() if path not in trained}
        self._frozen_per_run = {path: x for path, x in frozen.items() if path in trained}
        self._hparams = jax.tree.map(lambda *x: np.stack(x), *(run.plans[index].hparams for run in self.runs))
        self._index, self._plan, self._channels = index, plan, inputs.channel_index
        state = _init_states(plan.spec, len(self))(params, batch_stats, self._hparams)
        if self.first(index).progress.step:
            state = self._restore(self.mesh.put_variables(state))
        self._trained = trained
        shared = param_hashes(self._frozen, self._channels)
        for i, run in self._running(index):
            run.start_phase(shared | param_hashes(unstack(self._frozen_per_run, i), self._channels))
        return self.mesh.put_variables(state), inputs._replace(frozen=self._frozen)

    def _restore(self, state: TrainState) -> TrainState:
        """Return the state of the latest checkpoints; `state` has the same structure and shapes."""
        like = unstack(_resume_tree(state), 0)
        saved = stack([run.checkpoints.restore(_latest_step(run), like) for run in self.runs])
        restored = state._replace(opt_state=saved["opt_state"], step=saved["step"])
        if state.ema:  # the parameters of the checkpoint are the averaged ones
            average = state.params | state.batch_stats
            return restored._replace(params=saved["raw_params"], batch_stats=saved["raw_batch_stats"], ema=average)
        return restored

    def compile_steps(self, plan: PhasePlan, inputs: StepInputs) -> Callable:
        """Return the compiled program `(state, block, key) → (state, metrics [N, steps, ...])`."""
        program = compile_replicas(plan.spec, len(self), self.mode, self.mesh.sharding)

        def run_steps(state: TrainState, block: StepBlock, key: jax.Array):
            per_run = self._frozen_per_run, block.schedule["lr"], self._hparams
            return program(state, per_run, inputs, block, key)

        return run_steps

    def schedule(self, step: int, length: int) -> dict[str, np.ndarray]:
        """Return the hyperparameters of the next steps: `lr` [N, length] and `progress` [length], from 0 to 1."""
        plans = [run.plans[self._index] for run in self.runs]
        steps = range(step, min(step + length, self._plan.steps))
        lr = np.zeros((len(self), length), np.float32)
        progress = np.zeros(length, np.float32)
        for i, plan in enumerate(plans):
            lr[i, : len(steps)] = [learning_rate(plan.optim, s, plan.steps, plan.steps_per_epoch) for s in steps]
        progress[: len(steps)] = [s / self._plan.steps for s in steps]
        return {"lr": lr, "progress": progress}

    def advance(self, steps: int) -> None:
        """Count steps that were sent to the device."""
        for _, run in self._running(self._index):
            run.advance(steps)

    def record(self, metrics: Mapping[str, np.ndarray]) -> tuple[float, float]:
        """Add the metrics [N, steps, ...] to the sums of each run.

        Raises:
          TrainingStopped: a loss or update is not finite, for a single run. Of several, only the failing run stops.

        Returns:
          The lowest last loss and the highest summed training metric of the runs, for the progress bar.
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
        """Update the trained variables from a state: the averaged ones if the phase averages weights."""
        changing = state.ema or state.params | state.batch_stats
        self._trained = self._plan.combine(changing, self._frozen_per_run, self._channels)

    def evaluate(self, arrays: Mapping[str, Images], split: Split) -> list[dict | None]:
        """Return the metrics of each run on a split, None for runs that are not in the phase.

        Args:
          arrays: images or cached features of the split, with the targets.
          split: the split.
        """
        side = self._plan.spec.preprocess.side
        size = inference_batch_size(side, self.mesh)
        if len(self) == 1:  # the same compiled program as in the final evaluation
            variables = self._frozen | unstack(self._trained, 0)
            outputs = [predict_batches(self._predict, variables, arrays, size, self.mesh)]
        else:
            predict = _compile_predict(self._predict, len(self), self.mode)
            stacked = predict_batches(predict, (self._trained, self._frozen), arrays, size, self.mesh)
            outputs = [{name: x[:, i] for name, x in stacked.items()} for i in range(len(self))]
        running = dict(self._running(self._index))
        return [
            running[i].compute_metrics(predictions, split, side) if i in running else None
            for i, predictions in enumerate(outputs)
        ]

    def save(self, state: TrainState, position: Any, metrics: list[dict | None] | None) -> None:
        """Save checkpoints, with the metrics of a validation if there was one; end the phase of finished runs.

        Raises:
          TrainingStopped: a phase has changed a frozen variable.
        """
        trainable = sum(x.size for x in state.params.values()) // len(self)
        shared_hashes = functools.cache(lambda: param_hashes(self._frozen, self._channels))
        frozen_paths = set(self._frozen_per_run)
        for i, run in self._running(self._index):
            arrays = unstack({"params": self._trained, **_resume_tree(state)}, i)
            frozen_of_run = {path: arrays["params"][path] for path in frozen_paths}

            def frozen_hashes(frozen_of_run=frozen_of_run):
                return shared_hashes() | param_hashes(frozen_of_run, self._channels)

            valid = metrics[i] if metrics is not None else None
            ranking = run.record_validation(valid) if valid is not None else None
            run.save(arrays, position, ranking, frozen_hashes, trainable)

    def end_phase(self) -> None:
        """Restore the variables of each run at the end of its phase, which early stopping ends at different steps."""
        if len(self) > 1:
            self._trained = stack([run.final_params or unstack(self._trained, i) for i, run in enumerate(self.runs)])

    def wait(self) -> None:
        """Wait until all checkpoints are written."""
        for run in self.runs:
            run.checkpoints.wait()


def over_replicas(count: int, mode: str) -> Callable:
    """Return `map_runs(function, tree)`, which applies a function of one run's tree to a tree with leading axis [N]."""
    if count > 1:
        return {"vmap": lambda f, x: jax.vmap(f)(x), "map": lambda f, x: jax.lax.map(f, x)}[mode]

    def apply_single(function: Callable, tree):
        # Without vmap, whose batching rules could change how a single run is computed.
        return jax.tree.map(lambda x: x[None], function(jax.tree.map(lambda x: x[0], tree)))

    return apply_single


@functools.lru_cache(maxsize=64)
def compile_replicas(spec: StepSpec, count: int, mode: str, sharding: str) -> Callable:
    """Compile `program(state, (frozen, lr, hparams), inputs, block, key)`, with [N, ...] arrays in the first two."""
    multi_step = make_multi_step(spec, sharding)
    map_runs = over_replicas(count, mode)

    def program(state: TrainState, per_run: tuple, inputs: StepInputs, block: StepBlock, key: jax.Array):
        def run_one(replica):
            state, (frozen, lr, hparams) = replica
            run_inputs = inputs._replace(frozen=inputs.frozen | frozen)
            run_block = block._replace(schedule={**block.schedule, "lr": lr})
            return multi_step(state, run_inputs, run_block, hparams, key)

        return map_runs(run_one, (state, per_run))

    return jax.jit(program, donate_argnums=0, compiler_options=spec.compiler_options)


@functools.lru_cache(maxsize=64)
def _compile_predict(predict: Callable, count: int, mode: str) -> Callable:
    """Compile `predict((trained [N, ...], frozen), batch) → {name: [B, N, ...]}`."""
    map_runs = over_replicas(count, mode)

    def predict_all(variables: tuple[Variables, Variables], batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        trained, frozen = variables
        outputs = map_runs(lambda trained_of_run: predict.__wrapped__(frozen | trained_of_run, batch), trained)
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), outputs)

    return jax.jit(predict_all, compiler_options=inference_options())


@functools.lru_cache(maxsize=64)
def _init_states(spec: StepSpec, count: int) -> Callable:
    map_runs = over_replicas(count, "vmap")
    return jax.jit(lambda *stacked: map_runs(lambda args: init_state(spec, *args), stacked))


# jit, so that the many arrays of a tree are handled by one program.
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
    """Return the trees of several runs stacked along a new leading axis."""
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def _resume_tree(state: TrainState) -> dict:
    """Return the content of a checkpoint besides the model; with averaging, also the weights that are averaged."""
    raw = {"raw_params": state.params, "raw_batch_stats": state.batch_stats} if state.ema else {}
    return {"opt_state": state.opt_state, "step": state.step, **raw}
