"""The host's loop: phases in order, metrics a step late, validation, early stopping, and checkpoints.

Whatever the loop knows lies in the arrays of the state and in `Progress`, and both are in every checkpoint: a run that
dies goes on to the same bits.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Protocol

import jax
import numpy as np

from tljax.checkpoints import Checkpoints, goodness
from tljax.config import Config
from tljax.data import Data
from tljax.data.loader import train_batches
from tljax.errors import Interrupted, TrainingStopped
from tljax.models.state import Leaves
from tljax.tasks import classification
from tljax.train.evaluate import predict_split
from tljax.train.optimizer import hyper_of, learning_rate
from tljax.train.phases import PhasePlan
from tljax.train.sharding import Mesh
from tljax.train.step import State, init_state, make_train_step
from tljax.weights import parameters_digest


class Log(Protocol):
    """Where the loop tells what happens."""

    def phase(self, name: str, steps: int, done: int) -> None:
        """A phase begins or goes on."""

    def step(self, pictures: int, loss: float, accuracy: float) -> None:
        """A step's metrics have arrived."""

    def row(self, row: dict) -> None:
        """A validation is through."""

    def rewind(self, rows: int) -> None:
        """Only so many rows count; the others came after the checkpoint."""


@dataclasses.dataclass
class Progress:
    """The host's side of a run; plain values, so that it is JSON in a checkpoint.

    Attributes:
      phase: index of the current phase.
      step: steps done in it.
      total: steps done in the run.
      epoch: epochs done in the phases before.
      data: position of the batch iterator.
      sums: of loss, correct pictures and pictures since the last validation.
      best: accuracy, loss, step, epoch and phase of the best validation so far.
      phase_best: the same within the phase; early stopping counts from it.
      frozen: digest of each frozen leaf at the start of the phase.
      phases: a record of each finished phase.
      rows: lines of metrics.jsonl that count.
      seconds: spent so far, over all sittings; `phase_seconds` at the start of the phase.
    """

    phase: int = 0
    step: int = 0
    total: int = 0
    epoch: float = 0.0
    data: dict | None = None
    sums: dict = dataclasses.field(default_factory=lambda: {"loss": 0.0, "correct": 0, "steps": 0})
    best: dict | None = None
    phase_best: dict | None = None
    frozen: dict | None = None
    phases: list = dataclasses.field(default_factory=list)
    rows: int = 0
    seconds: float = 0.0
    phase_seconds: float = 0.0


@dataclasses.dataclass
class Fit:
    """One training, over all its phases.

    Attributes:
      config: of the run.
      data: its splits; the test split is not touched.
      mesh: the devices.
      predict: the compiled forward pass, (leaves, uint8 images) -> probabilities.
      checkpoints: of the work directory.
      log: hears of steps and validations.
      stop_asked: asked after every step; when true, the state is saved and the training ends.
    """

    config: Config
    data: Data
    mesh: Mesh
    predict: Callable
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
        plan, config = plans[progress.phase], self.config
        learned, moving, frozen = plan.take(leaves)
        # The leaves of the caller outlive this phase's donated state.
        state = state or init_state(plan.spec, *jax.tree.map(jax.numpy.copy, (learned, moving)), hyper_of(plan.optim))
        state = self.mesh.put(state)
        if progress.frozen is None:
            progress.frozen = _digests(frozen)
        batches = train_batches(
            self.data.train, config.train.batch_size, (config.seed, progress.phase), steps=plan.steps
        )
        if progress.data is not None:
            batches.set_state(progress.data)
        train_step = make_train_step(plan.spec)
        key = self.mesh.put(jax.random.fold_in(jax.random.key(config.seed), progress.phase))
        hyper, started = hyper_of(plan.optim), time.monotonic() - progress.seconds
        self.log.phase(plan.phase.name, plan.steps, progress.step)
        index, pending = progress.phase, None
        while progress.phase == index:  # the save at a phase's end moves on to the next
            batch = self.mesh.put_batch(next(batches))
            lr = learning_rate(plan.optim, progress.step, plan.steps, plan.steps_per_epoch)
            state, metrics = train_step(state, frozen, batch, hyper | {"lr": lr}, key)
            progress.step, progress.total = progress.step + 1, progress.total + 1
            # A step late: the device works on this step while the host reads the one before.
            self._collect(pending, progress)
            pending = metrics
            validate, asked = progress.step in plan.evaluations, self.stop_asked()
            if validate or asked or progress.step in plan.checkpoints:
                self._collect(pending, progress, late=0)
                pending, progress.data = None, batches.get_state()
                leaves = state.learned | state.moving | frozen
                scores = self._validate(plan, progress, leaves, lr, started) if validate else None
                self._save(plans, progress, state, frozen, scores, started)
            if asked:
                self.checkpoints.wait()
                raise Interrupted(f"step {progress.total} is saved; the same command goes on from here.")
        return leaves

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
        progress.sums = Progress().sums
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
                },
                "valid": valid,
                "best": best,
            }
        )
        return {k: mark[k] for k in ("accuracy", "loss", "epoch")}

    def _save(self, plans, progress: Progress, state: State, frozen: Leaves, scores: dict | None, started) -> None:
        plan, progress.seconds = plans[progress.phase], time.monotonic() - started
        arrays = {"params": state.learned | state.moving | frozen, "opt": state.opt, "step": state.step}
        if progress.step == plan.steps or (scores is not None and self._stopped_early(plan, progress)):
            self._finish_phase(plan, progress, state, frozen)
        self.checkpoints.save(progress.total, arrays, dataclasses.asdict(progress), scores)

    def _finish_phase(self, plan: PhasePlan, progress: Progress, state: State, frozen: Leaves) -> None:
        moved = [p for p, digest in _digests(frozen).items() if digest != progress.frozen[p]]
        if moved:
            raise TrainingStopped(f'Phase "{plan.phase.name}" changed leaves that were frozen: {", ".join(moved)}.')
        epochs = progress.step / plan.steps_per_epoch
        progress.phases.append(
            {
                "name": plan.phase.name,
                "epochs": epochs,
                "steps": progress.step,
                "seconds": progress.seconds - progress.phase_seconds,
                "learned_parameters": int(sum(x.size for x in state.learned.values())),
                "optimizer_bytes": optimizer_bytes(state.opt),
                "frozen_unchanged": True,
            }
        )
        progress.phase, progress.step, progress.epoch = progress.phase + 1, 0, progress.epoch + epochs
        progress.data = progress.phase_best = progress.frozen = None
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
        learned, moving, _ = plan.take(leaves)
        fresh = self.mesh.put(init_state(plan.spec, learned, moving, hyper_of(plan.optim)))
        saved = self.checkpoints.restore(step, {"params": leaves, "opt": fresh.opt, "step": fresh.step})
        learned, moving, _ = plan.take(saved["params"])
        return State(learned, moving, saved["opt"], saved["step"]), saved["params"]


def optimizer_bytes(opt) -> int:
    """Bytes of the optimizer's moments; step counters do not count."""
    return int(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(opt) if x.ndim or x.size > 1))


def _better(mark: dict, best: dict | None) -> bool:
    return best is None or goodness(mark) > goodness(best)


def _digests(leaves: Leaves) -> dict[str, str]:
    return {path: parameters_digest({path: np.asarray(value)}) for path, value in leaves.items()}
