"""The host's loop: phases in order, validation, early stopping, and checkpoints, of one run or of several at once.

Whatever the loop knows lies in the arrays of the state and in `Progress`, and both are in every checkpoint: a run that
dies goes on to the same bits. Runs that train together share pictures, their order and the random keys, and differ in
numbers alone; what they change has a leading axis, of length one where a run is alone.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np

from tljax.data import DataSplits
from tljax.data.loader import train_batches
from tljax.distributed.mesh import DeviceMesh
from tljax.errors import Interrupted, TrainingStopped
from tljax.features.feature_cache import FeatureCache, inference_batch_size
from tljax.inference.predict import predict_batches
from tljax.models.params import Variables
from tljax.strategies import neurons
from tljax.train import neuron_scores, replicas
from tljax.train.batches import MAX_STEPS_PER_CALL, BatchStream
from tljax.train.callbacks import ProgressReporter, TrainProgress
from tljax.train.multi_step import make_multi_predict, make_multi_step
from tljax.train.optimizer import learning_rate
from tljax.train.plan import PhasePlan
from tljax.train.run_state import RunState, digests
from tljax.train.step import StepInputs, TrainState

# A program runs for about so long before the host looks again, whether to stop and what to show.
TARGET_SECONDS = 0.3


@dataclasses.dataclass(eq=False)
class Trainer:
    """One training, over all its phases, of one or more runs.

    Attributes:
      members: the runs, which stand at the same step of the same phase.
      data: their splits; the test split is not touched.
      mesh: the devices.
      predict: the compiled forward pass, (leaves, batch) -> answers.
      source: source values of leaves, where the strategy has them.
      observed: leaves of the networks that phases look at, by name.
      keeper: of what is computed once.
      log: hears of steps.
      stop_asked: asked after every program; when true, the states are saved and the training ends.
      how: of several runs: "vmap" or "map", as in `make_steps`.
    """

    members: Sequence[RunState]
    data: DataSplits
    mesh: DeviceMesh
    predict: Callable
    source: Variables
    observed: Mapping[str, Variables]
    keeper: FeatureCache
    log: ProgressReporter
    stop_asked: Callable[[], bool]
    how: str = "vmap"

    def run(self, leaves: Variables) -> None:
        """Trains through the phases, from the last checkpoints if there are any.

        Args:
          leaves: the model's initial values, on the mesh.

        Raises:
          TrainingStopped: loss or update of a run that is alone is not finite; of several, each keeps its own failure.
          Interrupted: `stop_asked` said so; the states are saved.
        """
        own, state = self._restored(leaves) if all([m.resume() for m in self.members]) else ({}, None)
        for place in range(self.members[0].progress.phase, len(self.members[0].plans)):
            if any(member.in_phase(place) for member in self.members):
                own, state = self._run_phase(place, leaves, own, state), None

    def _run_phase(self, place: int, shared: Variables, own: Variables, state: TrainState | None) -> Variables:
        """Takes the members through a phase; returns the leaves that they have changed, with a leading axis."""
        plans = [member.plans[place] for member in self.members]
        plan, progress = plans[0], self._running(place)[0].progress
        step = progress.step
        leaves = shared | replicas.unstack(own, 0)
        index = self._index(plan, leaves)
        own = own | replicas.broadcast({p: shared[p] for p in plan.changing if p not in own}, len(plans))
        learned, moving, rest = plan.partition(shared | own, index)
        frozen, still = ({p: x for p, x in rest.items() if (p in own) == changed} for changed in (False, True))
        hyper = jax.tree.map(lambda *x: np.stack(x), *(p.hparams for p in plans))
        state = state or self.mesh.put_variables(replicas.init_states(plan.spec, learned, moving, hyper))
        feed, valid = self._feed(plan, progress, leaves), self._valid(plan, leaves)
        given, key, pace = self._given(plan, leaves, index), self._key(place), Pace()
        steps = make_multi_step(plan.spec, len(plans), self.how, feed.on_device, self.mesh.shard)
        self.log.start_phase(plan.phase.name, plan.steps, step)
        self._begin(place, frozen, still, index)
        pending = None
        while any(member.in_phase(place) for member in self.members):
            count = min(plan.next_event(step) - step, feed.max_steps, pace.steps)
            block, now = feed.next_block(count), _numbers(plans, step, feed.max_steps)
            state, metrics = steps(state, frozen, still, feed.data, block, now, hyper, key, given, count)
            step += count
            for member in self._running(place):
                member.advance(count)
            # A program late: the device works on this one while the host reads the one before.
            self._collect(place, pending)
            pending = count, metrics
            pace.passed(count)
            asked = self.stop_asked()
            if asked or step in plan.evaluations or step in plan.checkpoints:
                self._collect(place, pending)
                pending, pace.since = None, None
                own = plan.combine(state.ema or state.params | state.batch_stats, still, index)
                answers = self._predict(plan, own, frozen, valid) if step in plan.evaluations else None
                self._save(place, own, state, frozen, index, feed.position, answers)
            if asked:
                for member in self.members:
                    member.checkpoints.wait()
                raise Interrupted(f"step {progress.total} is saved; the same command goes on from here.")
        return (
            own
            if len(plans) == 1
            else replicas.stack([m.final_params or replicas.unstack(own, i) for i, m in enumerate(self.members)])
        )

    def _running(self, place: int) -> list[RunState]:
        return [member for member in self.members if member.in_phase(place)]

    def _key(self, place: int) -> jax.Array:
        return self.mesh.put(jax.random.fold_in(jax.random.key(self.members[0].config.seed), place))

    def _index(self, plan: PhasePlan, leaves: Variables) -> dict[str, jax.Array]:
        """Which output channels learn where single neurons do, chosen at the start of the phase, by path of a leaf."""
        if not plan.layers:
            return {}
        (member,) = self.members
        if member.progress.channels is None:
            asked, size, train = plan.phase.neurons, member.config.train.batch_size, self.data.train
            steps = max(1, min(asked.num_images, len(train)) // size)
            self.log.start_task(f"{plan.phase.name}: choosing neurons", steps * size)
            seed, arrays = (member.config.seed, member.progress.phase), {"image": train.images}
            arrays |= train.targets(plan.spec.preprocess.size)
            batches = self._told(train_batches(arrays, size, seed, steps), size)
            network = neuron_scores.ScoredModel(
                plan.spec.graphdef, plan.spec.task, plan.spec.preprocess, plan.spec.dtype
            )
            key = self._key(member.progress.phase)
            scores = neuron_scores.score_channels(network, leaves, plan.layers, batches, asked, key)
            chosen = neurons.select_channels(scores, asked)
            member.progress.channels = {layer: channels.tolist() for layer, channels in chosen.items()}
        return self.mesh.put(neurons.channel_index(member.progress.channels, plan.layers))

    def _told(self, batches: Iterator[dict], size: int) -> Iterator[dict]:
        for batch in batches:
            yield self.mesh.put_batch(batch)
            self.log.advance_task(size)

    def _feed(self, plan: PhasePlan, progress: TrainProgress, leaves: Variables) -> BatchStream:
        """The phase's batches, with what frozen networks say of their pictures where that is computed once."""
        config, train = self.members[0].config, self.data.train
        views = plan.cache_plan.num_views
        arrays = self.keeper.targets(plan.spec, train, views)
        arrays |= {"image": train.images} if plan.needs_images else {}
        for network in plan.cache_plan.cached:
            theirs, what = network.variables(self.observed, leaves), f"{plan.phase.name}: {network.name}, training"
            arrays |= self.keeper.get(network, theirs, train, what, views, plan.phase.epochs / max(1, views))
        unlabelled = None
        if plan.spec.views:
            unlabelled = self.data.unlabelled.images, config.train.batch_size * config.strategy.unlabelled_ratio
        seed = config.seed, progress.phase
        # On a processor, XLA computes maps inside a loop many times slower: ResNet-8 takes 26 ms a step, not 4.
        maps = plan.needs_images or not plan.spec.dense
        most = 1 if maps and jax.default_backend() == "cpu" else MAX_STEPS_PER_CALL
        feed = BatchStream(arrays, unlabelled, config.train.batch_size, seed, plan.steps, views, self.mesh, most)
        if progress.data is not None:
            feed.seek(progress.data)
        return feed

    def _valid(self, plan: PhasePlan, leaves: Variables) -> Mapping[str, np.ndarray]:
        """The validation pictures, or the maps of the frozen first stages where these are computed once."""
        valid = self.data.valid
        targets = valid.targets(plan.spec.preprocess.size)
        if (prefix := plan.cache_plan.cached_valid) is None:
            return {"image": valid.images} | targets
        theirs, what = prefix.variables(self.observed, leaves), f"{plan.phase.name}: {prefix.name}, validation"
        return self.keeper.get(prefix, theirs, valid, what, passes=len(plan.evaluations)) | targets

    def _given(self, plan: PhasePlan, leaves: Variables, index: Mapping[str, jax.Array]) -> StepInputs:
        """What the steps are given; source values only where an objective asks for them."""
        paths = [p for p in plan.trainable if p in self.source] if "source_leaves" in plan.spec.requires else []
        slices = {p: i for p, i in index.items() if p in paths}
        origin = {p: self.source[p] for p in paths}
        origin |= neurons.gather({p: origin[p] for p in slices}, slices)
        return StepInputs(
            index, origin, tuple(network.variables(self.observed, leaves) for network in plan.spec.networks)
        )

    def _begin(self, place: int, frozen: Variables, still: Variables, index: Mapping[str, jax.Array]) -> None:
        same = digests(frozen, index)
        for i, member in enumerate(self.members):
            if member.in_phase(place):
                member.start_phase(same | digests(replicas.unstack(still, i), index))

    def _collect(self, place: int, pending: tuple | None) -> None:
        if pending is None:
            return
        count, metrics = pending
        metrics = jax.tree.map(lambda x: x[:count], jax.device_get(metrics))
        for i, member in enumerate(self.members):
            if member.in_phase(place):
                try:
                    member.record({name: x[:, i] for name, x in metrics.items()})
                except TrainingStopped as failure:
                    if len(self.members) == 1:
                        raise
                    member.failure = failure
        pictures = self.members[0].config.train.batch_size * count
        seen = metrics["correct"].sum(0).max() / pictures
        self.log.steps(count, pictures * len(self.members), float(metrics["loss"][-1].min()), float(seen))

    def _predict(self, plan: PhasePlan, own: Variables, frozen: Variables, arrays: Mapping[str, np.ndarray]) -> dict:
        """Answers {name: [N, runs, ...]}."""
        runs, size = len(self.members), inference_batch_size(plan.spec.preprocess.size, self.mesh)
        if runs == 1:  # the program that the result is judged with, too
            rows = predict_batches(self.predict, frozen | replicas.unstack(own, 0), arrays, size, self.mesh)
            return {name: x[:, None] for name, x in rows.items()}
        return predict_batches(make_multi_predict(self.predict, runs, self.how), (own, frozen), arrays, size, self.mesh)

    def _save(self, place: int, own: Variables, state: TrainState, frozen: Variables, index, position, answers) -> None:
        """Tells the running members of a validation, if there was one, and makes their checkpoints."""
        now = functools.cache(lambda: digests(frozen, index))
        learned = sum(x[0].size for x in state.params.values())
        for i, member in enumerate(self.members):
            if not member.in_phase(place):
                continue
            still = {p for p in member.plan.frozen if p not in frozen}
            arrays = replicas.unstack({"params": own, **_besides(state)}, i)
            scores = None
            if answers is not None:
                rows = {name: x[:, i] for name, x in answers.items()}
                scores = member.record_validation(
                    member.task.compute_metrics(rows, self.data.valid, member.plan.spec.preprocess.size)
                )
            member.save(
                arrays,
                learned,
                position,
                scores,
                lambda: now() | digests({p: arrays["params"][p] for p in still}, index),  # noqa: B023 - called at once
            )

    def _restored(self, shared: Variables) -> tuple[Variables, TrainState | None]:
        """What the last checkpoints hold: changed leaves, and the state unless they lie at a phase's end."""
        place, step = self.members[0].progress.phase, self.members[0].progress.step
        latest = [(member.checkpoints, member.checkpoints.latest) for member in self.members]
        own = replicas.stack([kept.restore_params(at, shared) for kept, at in latest])
        if step == 0:
            return own, None
        plan = self.members[0].plans[place]
        index = self._index(plan, shared | replicas.unstack(own, 0))
        learned, moving, _ = plan.partition(shared | own, index)
        hyper = jax.tree.map(lambda *x: np.stack(x), *(m.plans[place].hparams for m in self.members))
        fresh = self.mesh.put_variables(replicas.init_states(plan.spec, learned, moving, hyper))
        like = replicas.unstack(_besides(fresh), 0)
        saved = replicas.stack([kept.restore(at, like) for kept, at in latest])
        state = TrainState(learned, moving, saved["opt"], saved["step"], {})
        if fresh.ema:  # what was kept as the model is the average
            state = state._replace(params=saved["learned"], batch_stats=saved["moving"], ema=learned | moving)
        return own, self.mesh.put_variables(state)


class Pace:
    """How many steps a program takes, so that it takes about `TARGET_SECONDS` seconds."""

    def __init__(self):
        self.steps, self.since, self._programs = 1, None, 0

    def passed(self, steps: int) -> None:
        """A program of so many steps was sent, and the one before it is through."""
        now, self._programs = time.monotonic(), self._programs + 1
        # The first one was compiled, and the second waited for that.
        if self.since is not None and self._programs > 3:
            self.steps = max(1, min(2 * self.steps, int(TARGET_SECONDS * steps / max(1e-9, now - self.since))))
        self.since = now


def _numbers(plans: Sequence[PhasePlan], step: int, room: int) -> dict[str, np.ndarray]:
    """What is another number in each step, from `step` on: `lr` [room, runs] and `progress` [room]."""
    steps = range(step, min(step + room, plans[0].steps))
    lr, progress = np.zeros((room, len(plans)), np.float32), np.zeros(room, np.float32)
    for run, plan in enumerate(plans):
        lr[: len(steps), run] = [learning_rate(plan.optim, s, plan.steps, plan.steps_per_epoch) for s in steps]
    progress[: len(steps)] = [s / plans[0].steps for s in steps]
    return {"lr": lr, "progress": progress}


def _besides(state: TrainState) -> dict:
    """What a checkpoint holds of a state besides the model: where that is an average, what is averaged too."""
    averaged = {"learned": state.params, "moving": state.batch_stats} if state.ema else {}
    return {"opt": state.opt_state, "step": state.step, **averaged}
