"""The training loop on the host: phases in order, validation, early stopping and checkpoints.

All state of the loop is in the arrays of `TrainState` and in `TrainProgress`. Checkpoints store both, so that a killed
run resumes bit for bit.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping

import jax

from tljax.data import DataSplits
from tljax.data.dataset import Images
from tljax.data.loader import train_batches
from tljax.distributed.mesh import DeviceMesh
from tljax.errors import Interrupted
from tljax.features.feature_cache import FeatureCache
from tljax.models.params import Variables
from tljax.strategies import neurons
from tljax.train import neuron_scores
from tljax.train.batches import MAX_STEPS_PER_CALL, BatchStream, row_batches
from tljax.train.callbacks import ProgressReporter
from tljax.train.multi_step import StepBlock
from tljax.train.plan import PhasePlan
from tljax.train.replicas import Replicas
from tljax.train.run_state import RunState
from tljax.train.state import StepInputs

# Duration of a compiled program, after which the host updates the progress bar and checks for a stop request.
TARGET_BLOCK_SECONDS = 0.3


@dataclasses.dataclass(eq=False)
class Trainer:
    """Trains a run, or several runs as one program, through all phases.

    Attributes:
      replicas: the runs and their arrays.
      data: the splits; the test split is not read.
      mesh: the devices.
      source_params: pretrained values of parameters, or {}.
      networks: variables of the teachers and the source network, by name.
      features: cache of the outputs of frozen networks.
      progress: receives finished steps and other tasks.
      stop_requested: called after every program; if it returns true, training saves checkpoints and stops.
    """

    replicas: Replicas
    data: DataSplits
    mesh: DeviceMesh
    source_params: Variables
    networks: Mapping[str, Variables]
    features: FeatureCache
    progress: ProgressReporter
    stop_requested: Callable[[], bool]

    def fit(self) -> None:
        """Train all remaining phases, resuming from the latest checkpoint.

        Raises:
          TrainingStopped: a loss or update is not finite. Of several runs, the failing one stops and the others
            continue; its error is in `RunState.failure`.
          Interrupted: a stop was requested; checkpoints are saved.
        """
        self.replicas.resume()
        run = self.replicas.runs[0]
        for index in range(run.progress.phase, len(run.plans)):
            if self.replicas.in_phase(index):
                self.fit_phase(index)

    def fit_phase(self, index: int) -> None:
        """Train one phase from its current step."""
        replicas = self.replicas
        run = replicas.first(index)
        plan = run.plans[index]
        variables = replicas.variables()
        inputs = self.step_inputs(plan, variables, self.channel_index(plan, run, variables))
        batches = self.make_batches(plan, run, variables)
        valid = self.validation_arrays(plan, variables)
        state, inputs = replicas.start_phase(index, inputs)
        run_steps = replicas.compile_steps(plan, inputs)
        key = self.phase_key(run, index)
        step = run.progress.step
        blocks = BlockSizer()
        pending = None
        self.progress.start_phase(plan.phase.name, plan.steps, step)
        while replicas.in_phase(index):
            count = min(plan.next_event(step) - step, batches.max_steps, blocks.steps)
            schedule = replicas.schedule(step, batches.max_steps)
            block = StepBlock(batches.data, batches.next_block(count), schedule, count)
            state, metrics = run_steps(state, block, key)
            step += count
            replicas.advance(count)
            self.record(pending)  # one block late: the device computes this block while the host reads the previous one
            pending = count, metrics
            blocks.sent(count)
            stop = self.stop_requested()
            if stop or step in plan.events:
                self.record(pending)
                pending = None
                blocks.pause()
                replicas.update(state)
                metrics = replicas.evaluate(valid, self.data.valid) if step in plan.evaluations else None
                replicas.save(state, batches.position, metrics)
            if stop:
                replicas.wait()
                raise Interrupted(f"step {run.progress.total} is saved; the same command resumes from it.")
        replicas.end_phase()

    def record(self, pending: tuple[int, Mapping[str, jax.Array]] | None) -> None:
        """Fetch the metrics of a block of steps, add them to the sums of each run, and report them."""
        if pending is None:
            return
        count, metrics = pending
        metrics = jax.tree.map(lambda x: x[:, :count], jax.device_get(metrics))
        loss, correct = self.replicas.record(metrics)
        images = self.replicas.runs[0].config.train.batch_size * count
        self.progress.advance_steps(count, images * len(self.replicas), loss, correct / images)

    def phase_key(self, run: RunState, index: int) -> jax.Array:
        """Return the random key of a phase; each step folds in its number."""
        return self.mesh.put(jax.random.fold_in(jax.random.key(run.config.seed), index))

    def channel_index(self, plan: PhasePlan, run: RunState, variables: Variables) -> dict[str, jax.Array]:
        """Return the trainable channels by path, if single channels train; selects them at the start of the phase."""
        if not plan.layers:
            return {}
        progress, config = run.progress, plan.phase.neurons
        if progress.channels is None:
            size, train = run.config.train.batch_size, self.data.train
            steps = max(1, min(config.num_images, len(train)) // size)
            self.progress.start_task(f"{plan.phase.name}: scoring neurons", steps * size)
            arrays = {"image": train.images} | train.targets(plan.spec.preprocess.side)
            batches = self._reported(train_batches(arrays, size, (run.config.seed, progress.phase), steps), size)
            model = neuron_scores.ScoredModel(plan.spec.graphdef, plan.spec.task, plan.spec.preprocess, plan.spec.dtype)
            key = self.phase_key(run, progress.phase)
            scores = neuron_scores.score_channels(model, variables, plan.layers, batches, config, key)
            selected = neurons.select_channels(scores, config)
            progress.channels = {layer: channels.tolist() for layer, channels in selected.items()}
        return self.mesh.put(neurons.channel_index(progress.channels, plan.layers))

    def _reported(self, batches: Iterator[dict], size: int) -> Iterator[dict]:
        for batch in batches:
            yield self.mesh.put_batch(batch)
            self.progress.advance_task(size)

    def step_inputs(self, plan: PhasePlan, variables: Variables, index: Mapping[str, jax.Array]) -> StepInputs:
        """Return the inputs of the steps of a phase, still without the frozen variables."""
        paths = plan.trainable if "source_params" in plan.spec.requires else ()
        source = {path: self.source_params[path] for path in paths if path in self.source_params}
        sliced = {path: channels for path, channels in index.items() if path in source}
        source |= neurons.gather_channels({path: source[path] for path in sliced}, sliced)
        networks = tuple(network.variables(self.networks, variables) for network in plan.spec.networks)
        return StepInputs({}, index, source, networks)

    def make_batches(self, plan: PhasePlan, run: RunState, variables: Variables) -> BatchStream:
        """Return the batches of a phase, with cached outputs of frozen networks, at the current position of the run."""
        config, train, progress = run.config, self.data.train, run.progress
        views = plan.cache_plan.num_views
        weighted = "boundary_weights" in plan.spec.requires
        arrays: dict[str, Images] = {**self.features.targets(train, plan.spec.preprocess.side, weighted, views)}
        arrays |= {"image": train.images} if plan.needs_images else {}
        for network in plan.cache_plan.cached:
            name = f"{plan.phase.name}: {network.name}, training"
            passes = plan.phase.length / max(1, views)
            values = network.variables(self.networks, variables)
            arrays |= self.features.get(network, values, train, name, views, passes)
        size, unlabelled = max(map(len, arrays.values())), None
        if plan.spec.views:
            assert self.data.unlabelled is not None  # `prepare` checks it
            arrays["unlabelled"] = self.data.unlabelled.images
            unlabelled = len(arrays["unlabelled"]), config.train.batch_size * config.strategy.unlabelled_ratio
        # XLA on CPU computes convolutions inside a loop many times slower: ResNet-8 takes 26 ms a step instead of 4.
        convolutions = plan.needs_images or not plan.spec.dense
        max_steps = 1 if convolutions and jax.default_backend() == "cpu" else MAX_STEPS_PER_CALL
        seed = config.seed, progress.phase
        rows = row_batches(size, config.train.batch_size, seed, plan.steps, unlabelled, views)
        batches = BatchStream(arrays, rows, self.mesh, min(max_steps, plan.steps))
        if progress.data is not None:
            batches.seek(progress.data)
        return batches

    def validation_arrays(self, plan: PhasePlan, variables: Variables) -> Mapping[str, Images]:
        """Return the validation targets with the images, or with cached features of the frozen stages."""
        valid = self.data.valid
        targets = valid.targets(plan.spec.preprocess.side)
        network = plan.cache_plan.cached_valid
        if network is None:
            return {"image": valid.images} | targets
        name = f"{plan.phase.name}: {network.name}, validation"
        values = network.variables(self.networks, variables)
        features = self.features.get(network, values, valid, name, passes=len(plan.evaluations))
        return {**features, **targets}


class BlockSizer:
    """Number of steps of the next program, chosen so that it runs for about `TARGET_BLOCK_SECONDS`."""

    def __init__(self):
        self.steps = 1
        self._sent_at: float | None = None
        self._programs = 0

    def sent(self, steps: int) -> None:
        """Record that a program of `steps` steps was sent and that the previous one is finished."""
        now = time.monotonic()
        self._programs += 1
        # The first program includes compilation, and the second one waits for it.
        if self._sent_at is not None and self._programs > 3:
            seconds_per_step = max(1e-9, now - self._sent_at) / steps
            self.steps = max(1, min(2 * self.steps, int(TARGET_BLOCK_SECONDS / seconds_per_step)))
        self._sent_at = now

    def pause(self) -> None:
        """Record that the host did other work, so that the next interval is not the duration of a program."""
        self._sent_at = None
