"""The host's loop: phases in order, metrics a step late, validation, early stopping, and checkpoints.

Whatever the loop knows lies in the arrays of the state and in `Progress`, and both are in every checkpoint: a run that
dies goes on to the same bits.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np

from tljax.checkpoints import Checkpoints, goodness
from tljax.config import Config
from tljax.data import Data
from tljax.data.loader import train_batches
from tljax.errors import Interrupted, TrainingStopped
from tljax.models.state import Leaves
from tljax.strategies import neurons
from tljax.tasks import classification
from tljax.train import criteria
from tljax.train.evaluate import predict_split
from tljax.train.optimizer import learning_rate, optimizer_bytes
from tljax.train.phases import PhasePlan
from tljax.train.progress import Log, Progress, no_sums
from tljax.train.reference import observe_split
from tljax.train.sharding import Mesh
from tljax.train.step import Given, State, init_state, make_train_step
from tljax.weights import parameters_digest


@dataclasses.dataclass
class Fit:
    """One training, over all its phases.

    Attributes:
      config: of the run.
      data: its splits; the test split is not touched.
      mesh: the devices.
      predict: the compiled forward pass, (leaves, uint8 images) -> probabilities.
      source: source values of leaves, where the strategy has them.
      observed: leaves of the networks that phases look at, by name.
      checkpoints: of the work directory.
      log: hears of steps and validations.
      stop_asked: asked after every step; when true, the state is saved and the training ends.
    """

    config: Config
    data: Data
    mesh: Mesh
    predict: Callable
    source: Leaves
    observed: Mapping[str, Leaves]
    checkpoints: Checkpoints
    log: Log
    stop_asked: Callable[[], bool]

    def run(self, plans: list[PhasePlan], leaves: Leaves) -> Progress:
        """Trains through the phases, from the last checkpoint if there is one.

        Args:
          plans: the phases.
          leaves: the model's initial values, on the mesh.

        Returns:
          The final progress; the best validation model is in the checkpoints.

        Raises:
          TrainingStopped: loss or update is not finite.
          Interrupted: `stop_asked` said so; the state is saved.
        """
        progress, state = Progress(), None
        if (latest := self.checkpoints.latest) is not None:
            progress = Progress(**self.checkpoints.progress(latest))
            self.log.rewind(progress.rows)
            if progress.phase < len(plans):
                state, leaves = self._restore(latest, plans[progress.phase], leaves)
        while progress.phase < len(plans):
            leaves = self._run_phase(plans, progress, leaves, state)
            state = None
        return progress

    def _run_phase(self, plans: list[PhasePlan], progress: Progress, leaves: Leaves, state: State | None) -> Leaves:
        plan = plans[progress.phase]
        index = self._index(plan, progress, leaves)
        learned, moving, frozen = plan.take(leaves, index)
        # The leaves of the caller outlive this phase's donated state.
        state = state or init_state(plan.spec, *jax.tree.map(jax.numpy.copy, (learned, moving)), plan.hyper)
        state = self.mesh.put(state)
        if progress.frozen is None:
            progress.frozen = _digests(frozen, index)
        batches, given = self._batches(plan, progress), self._given(plan, index)
        if progress.data is not None:
            batches.set_state(progress.data)
        train_step = make_train_step(plan.spec)
        key, started = self._key(progress), time.monotonic() - progress.seconds
        self.log.phase(plan.phase.name, plan.steps, progress.step)
        place, pending = progress.phase, None
        while progress.phase == place:  # the save at a phase's end moves on to the next
            batch = self.mesh.put_batch(next(batches))
            lr = learning_rate(plan.optim, progress.step, plan.steps, plan.steps_per_epoch)
            now = {"lr": lr, "progress": progress.step / plan.steps}
            state, metrics = train_step(state, frozen, batch, plan.hyper | now, key, given)
            progress.step, progress.total = progress.step + 1, progress.total + 1
            # A step late: the device works on this step while the host reads the one before.
            self._collect(pending, progress)
            pending = metrics
            validate, asked = progress.step in plan.evaluations, self.stop_asked()
            if validate or asked or progress.step in plan.checkpoints:
                self._collect(pending, progress, late=0)
                pending, progress.data = None, batches.get_state()
                leaves = plan.give(state.average or state.learned | state.moving, frozen, index)
                scores = self._validate(plan, progress, leaves, lr, started) if validate else None
                self._save(plans, progress, state, leaves, index, scores, started)
            if asked:
                self.checkpoints.wait()
                raise Interrupted(f"step {progress.total} is saved; the same command goes on from here.")
        return leaves

    def _key(self, progress: Progress) -> jax.Array:
        return self.mesh.put(jax.random.fold_in(jax.random.key(self.config.seed), progress.phase))

    def _index(self, plan: PhasePlan, progress: Progress, leaves: Leaves) -> dict[str, jax.Array]:
        """Which output channels learn where single neurons do, chosen at the start of the phase, by path of a leaf."""
        if not plan.layers:
            return {}
        if progress.neurons is None:
            limit, size = plan.phase.neurons.pictures, self.config.train.batch_size
            steps = max(1, min(limit, len(self.data.train)) // size)
            self.log.work(f"{plan.phase.name}: choosing neurons", steps * size)
            scores = criteria.score(
                plan.spec.graphdef,
                leaves,
                plan.layers,
                self._told(self._batches(plan, progress, steps), size),
                plan.phase.neurons,
                plan.spec.preprocess,
                plan.spec.dtype,
                self._key(progress),
            )
            chosen = neurons.choose(scores, plan.phase.neurons)
            progress.neurons = {layer: channels.tolist() for layer, channels in chosen.items()}
        return self.mesh.put(neurons.indices(progress.neurons, plan.layers))

    def _batches(self, plan: PhasePlan, progress: Progress, steps: int | None = None):
        """The phase's batches, with what other networks say of their pictures; with `steps`, so many without that."""
        config, train = self.config, self.data.train
        arrays, unlabelled = {"image": train.images, "label": train.labels}, None
        seed = (config.seed, progress.phase)
        if steps is not None:
            return train_batches(arrays, config.train.batch_size, seed, steps)
        for network in plan.once:
            self.log.work(f"{plan.phase.name}: {network.name}", len(train))
            leaves, size = self.observed[network.name], config.train.batch_size
            arrays |= observe_split(network, leaves, train, size, self.mesh, self.log.worked)
        if plan.spec.views:
            unlabelled = (self.data.unlabelled.images, config.train.batch_size * config.strategy.unlabelled_ratio)
        return train_batches(arrays, config.train.batch_size, seed, plan.steps, unlabelled)

    def _told(self, batches: Iterator[dict], size: int) -> Iterator[dict]:
        for batch in batches:
            yield self.mesh.put_batch(batch)
            self.log.worked(size)

    def _given(self, plan: PhasePlan, index: Mapping[str, jax.Array]) -> Given:
        """What the steps are given; source values only where an objective asks for them."""
        paths = [p for p in plan.learned if p in self.source] if "source_leaves" in plan.spec.needs else []
        slices = {p: i for p, i in index.items() if p in paths}
        origin = {p: self.source[p] for p in paths}
        origin |= neurons.gather({p: origin[p] for p in slices}, slices)
        return Given(index, origin, tuple(self.observed[network.name] for network in plan.spec.observed))

    def _collect(self, metrics: dict | None, progress: Progress, late: int = 1) -> None:
        if metrics is None:
            return
        metrics = jax.device_get(metrics)
        if not metrics["finite"]:
            self.checkpoints.wait()
            kept = self.checkpoints.latest
            raise TrainingStopped(
                f"The loss or its update is not finite at step {progress.total - late} (loss {metrics['loss']}); "
                + (f"the last good checkpoint is step {kept}." if kept is not None else "no checkpoint was made yet.")
                + " Try a smaller optim.lr, optim.clip_norm, or optim.warmup_epochs."
            )
        size = self.config.train.batch_size
        progress.sums = {
            "loss": progress.sums["loss"] + float(metrics["loss"]),
            "correct": progress.sums["correct"] + int(metrics["correct"]),
            "steps": progress.sums["steps"] + 1,
            "terms": (np.asarray(metrics["terms"]) + (progress.sums["terms"] or 0)).tolist(),
        }
        self.log.step(size, float(metrics["loss"]), progress.sums["correct"] / (size * progress.sums["steps"]))

    def _validate(self, plan: PhasePlan, progress: Progress, leaves: Leaves, lr: float, started: float) -> dict:
        probabilities = predict_split(self.predict, leaves, self.data.valid, self.config.train.batch_size, self.mesh)
        valid = classification.scores(self.data.valid.labels, probabilities)
        sums, steps = progress.sums, progress.sums["steps"]
        mark = {
            "accuracy": valid["accuracy"],
            "loss": valid["loss"],
            "step": progress.total,
            "epoch": progress.epoch + progress.step / plan.steps_per_epoch,
            "phase": plan.phase.name,
        }
        best = _better(mark, progress.best)
        progress.best = mark if best else progress.best
        progress.phase_best = mark if _better(mark, progress.phase_best) else progress.phase_best
        terms = {name: t / steps for (name, _), t in zip(plan.phase.objectives, sums["terms"], strict=True)}
        progress.sums = no_sums()
        progress.rows += 1
        self.log.row(
            {
                "phase": plan.phase.name,
                "epoch": mark["epoch"],
                "step": progress.total,
                "lr": lr,
                "seconds": time.monotonic() - started,
                "train": {
                    "loss": sums["loss"] / steps,
                    "accuracy": sums["correct"] / (steps * self.config.train.batch_size),
                    # Each objective, unweighted, where there is more than one.
                    **(terms if len(terms) > 1 else {}),
                },
                "valid": valid,
                "best": best,
            }
        )
        return {k: mark[k] for k in ("accuracy", "loss", "epoch")}

    def _save(self, plans, progress: Progress, state: State, leaves: Leaves, index, scores, started: float) -> None:
        plan, progress.seconds = plans[progress.phase], time.monotonic() - started
        arrays = {"params": leaves, **_besides(state)}
        if progress.step == plan.steps or (scores is not None and self._stopped_early(plan, progress)):
            self._finish_phase(plan, progress, state, leaves, index)
        self.checkpoints.save(progress.total, arrays, dataclasses.asdict(progress), scores)

    def _finish_phase(self, plan: PhasePlan, progress: Progress, state: State, leaves: Leaves, index) -> None:
        digests = _digests({path: leaves[path] for path in plan.frozen}, index)
        if moved := [path for path, digest in digests.items() if digest != progress.frozen[path]]:
            raise TrainingStopped(f'Phase "{plan.phase.name}" changed leaves that were frozen: {", ".join(moved)}.')
        epochs = progress.step / plan.steps_per_epoch
        progress.phases.append(
            {
                "name": plan.phase.name,
                "objectives": dict(plan.phase.objectives),
                "epochs": epochs,
                "steps": progress.step,
                "seconds": progress.seconds - progress.phase_seconds,
                "learned_parameters": int(sum(x.size for x in state.learned.values())),
                "optimizer_bytes": optimizer_bytes(state.opt),
                "frozen_unchanged": True,
            }
        )
        progress.phase, progress.step, progress.epoch = progress.phase + 1, 0, progress.epoch + epochs
        progress.data = progress.phase_best = progress.frozen = progress.neurons = None
        progress.phase_seconds = progress.seconds

    def _stopped_early(self, plan: PhasePlan, progress: Progress) -> bool:
        patience, best = self.config.train.early_stop_epochs, progress.phase_best
        if patience is None or best is None:
            return False
        # In steps; validations stand at rounded ones, so two of them may be a step closer than their epochs say.
        return progress.total - best["step"] > patience * plan.steps_per_epoch - 1

    def _restore(self, step: int, plan: PhasePlan, leaves: Leaves) -> tuple[State, Leaves]:
        """The state of a checkpoint, or, where it lies at a phase's end, the leaves to start the next phase from."""
        progress = self.checkpoints.progress(step)
        if progress["step"] == 0:
            return None, self.checkpoints.restore(step, {"params": leaves})["params"]
        index = self._index(plan, Progress(**progress), leaves)
        learned, moving, _ = plan.take(leaves, index)
        fresh = self.mesh.put(init_state(plan.spec, learned, moving, plan.hyper))
        saved = self.checkpoints.restore(step, {"params": leaves, **_besides(fresh)})
        learned, moving, _ = plan.take(saved["params"], index)
        state = State(learned, moving, saved["opt"], saved["step"], {})
        if fresh.average:  # what was kept as the model is the average
            state = state._replace(learned=saved["learned"], moving=saved["moving"], average=learned | moving)
        return state, saved["params"]


def _besides(state: State) -> dict:
    """What a checkpoint holds of a state besides the model: where that is an average, what is averaged too."""
    averaged = {"learned": state.learned, "moving": state.moving} if state.average else {}
    return {"opt": state.opt, "step": state.step, **averaged}


def _better(mark: dict, best: dict | None) -> bool:
    return best is None or goodness(mark) > goodness(best)


def _digests(leaves: Leaves, index: Mapping[str, jax.Array]) -> dict[str, str]:
    """Digests of leaves; of those in `index`, without the channels that learn."""
    values = {path: np.asarray(value) for path, value in leaves.items()}
    still = {p: np.delete(v, np.asarray(index[p]), axis=-1) if p in index else v for p, v in values.items()}
    return {path: parameters_digest({path: value}) for path, value in still.items()}
