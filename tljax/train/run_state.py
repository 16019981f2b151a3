"""One run as the training loop sees it: its numbers, what the host knows of it, and where both are kept."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from tljax.config import Config
from tljax.errors import TrainingStopped
from tljax.models.params import Variables
from tljax.storage.checkpoints import CheckpointManager, ranking_key
from tljax.tasks import Task, task_of
from tljax.train.callbacks import MetricWriter, TrainProgress, empty_sums
from tljax.train.optimizer import learning_rate, optimizer_bytes
from tljax.train.plan import PhasePlan
from tljax.weights import params_hash


@dataclasses.dataclass(eq=False)
class RunState:
    """A run that trains, alone or together with others.

    Attributes:
      config: of the run.
      plans: its phases.
      checkpoints: of its work directory.
      log: hears of its validations.
      progress: the host's side of it.
      failure: why it ended early, if it did.
      held: the leaves that it had changed when its last phase ended.
    """

    config: Config
    plans: list[PhasePlan]
    checkpoints: CheckpointManager
    log: MetricWriter
    progress: TrainProgress = dataclasses.field(default_factory=TrainProgress)
    failure: TrainingStopped | None = None
    final_params: Variables | None = None
    _started: float = 0.0
    _counted: int = 0

    def resume(self) -> bool:
        """Goes back to the last checkpoint; False where there is none."""
        if (latest := self.checkpoints.latest) is None:
            return False
        self.progress = TrainProgress(**self.checkpoints.progress(latest))
        self.log.truncate(self.progress.rows)
        return True

    def seconds_before(self) -> float:
        """Spent in sittings before this one."""
        latest = self.checkpoints.latest
        return 0.0 if latest is None else self.checkpoints.progress(latest)["seconds"]

    @property
    def plan(self) -> PhasePlan:
        """Of the phase that it is in."""
        return self.plans[self.progress.phase]

    def in_phase(self, place: int) -> bool:
        """Whether it is still in this phase."""
        return self.failure is None and self.progress.phase == place

    def start_phase(self, frozen: Mapping[str, str]) -> None:
        """A phase begins or goes on; `frozen` are digests of its frozen leaves."""
        self._started, self._counted = time.monotonic() - self.progress.seconds, self.progress.total
        if self.progress.frozen is None:
            self.progress.frozen = dict(frozen)

    def advance(self, steps: int) -> None:
        """So many steps are on their way."""
        self.progress.step += steps
        self.progress.total += steps

    def record(self, metrics: Mapping[str, np.ndarray]) -> None:
        """Adds up the metrics [steps, ...] of some steps.

        Raises:
          TrainingStopped: loss or update is not finite.
        """
        if not metrics["finite"].all():
            bad = int(np.argmin(metrics["finite"]))
            self.checkpoints.wait()
            kept = self.checkpoints.latest
            step, loss = self._counted + bad + 1, metrics["loss"][bad]
            raise TrainingStopped(
                f"The loss or its update is not finite at step {step} (loss {loss}); "
                + (f"the last good checkpoint is step {kept}." if kept is not None else "no checkpoint was made yet.")
                + " Try a smaller optim.lr, optim.clip_norm, or optim.warmup_epochs."
            )
        sums = dict(self.progress.sums)
        # One by one: however the steps are grouped, the sum is the same to the last bit.
        for loss, correct, terms in zip(metrics["loss"], metrics["correct"], metrics["terms"], strict=True):
            sums["loss"] += float(loss)
            sums["correct"] += float(correct)
            sums["terms"] = [float(t) + s for t, s in zip(terms, sums["terms"] or [0.0] * len(terms), strict=True)]
        sums["steps"] += len(metrics["loss"])
        self._counted += len(metrics["loss"])
        self.progress.sums = sums

    @property
    def task(self) -> Task:
        """What it learns."""
        return task_of(self.config)

    def record_validation(self, valid: dict[str, float | None]) -> dict[str, float]:
        """Takes note of a validation's scores; returns the metrics of its checkpoint."""
        plan, progress, size = self.plan, self.progress, self.config.train.batch_size
        sums, steps, chosen_by = progress.sums, progress.sums["steps"], self.task.metrics[0][0]
        mark = {
            chosen_by: valid[chosen_by] or 0.0,  # None: there was nothing to find
            "loss": valid["loss"],
            "epoch": progress.epoch + progress.step / plan.steps_per_epoch,
        }
        best = self._better(mark, progress.best)
        where = mark | {"step": progress.total, "phase": plan.phase.name}
        progress.best = where if best else progress.best
        progress.phase_best = where if self._better(mark, progress.phase_best) else progress.phase_best
        terms = {name: t / steps for (name, _), t in zip(plan.phase.losses, sums["terms"], strict=True)}
        progress.sums = empty_sums()
        progress.rows += 1
        self.log.write(
            {
                "phase": plan.phase.name,
                "epoch": mark["epoch"],
                "step": progress.total,
                "lr": learning_rate(plan.optim, progress.step - 1, plan.steps, plan.steps_per_epoch),
                "seconds": time.monotonic() - self._started,
                "train": {
                    "loss": sums["loss"] / steps,
                    self.task.train_metric_name: sums["correct"] / (steps * size),
                    # Each objective, unweighted, where there is more than one.
                    **(terms if len(terms) > 1 else {}),
                },
                "valid": valid,
                "best": best,
            }
        )
        return mark

    def save(
        self, arrays: dict, learned: int, position: Any, scores: dict | None, frozen: Callable[[], Mapping[str, str]]
    ) -> None:
        """Makes a checkpoint, and ends the phase where it is through.

        Args:
          arrays: `params`, the changed leaves, and `opt`, `step` and the like.
          learned: how many numbers learn.
          position: of the data.
          scores: from `validated`.
          frozen: digests of the frozen leaves as they are now.
        """
        plan, progress = self.plan, self.progress
        progress.data, progress.seconds = position, time.monotonic() - self._started
        if progress.step == plan.steps or (scores is not None and self._stopped_early()):
            self._finish_phase(arrays["opt"], learned, frozen())
            self.final_params = arrays["params"]
        self.checkpoints.save(progress.total, arrays, dataclasses.asdict(progress), scores)

    def _finish_phase(self, opt, learned: int, frozen: Mapping[str, str]) -> None:
        plan, progress = self.plan, self.progress
        if moved := [path for path, digest in frozen.items() if digest != progress.frozen[path]]:
            raise TrainingStopped(f'Phase "{plan.phase.name}" changed leaves that were frozen: {", ".join(moved)}.')
        epochs = progress.step / plan.steps_per_epoch
        progress.phases.append(
            {
                "name": plan.phase.name,
                "losses": dict(plan.phase.losses),
                "epochs": epochs,
                "steps": progress.step,
                "seconds": progress.seconds - progress.phase_seconds,
                "trainable_parameters": learned,
                "optimizer_bytes": optimizer_bytes(opt),
                "frozen_unchanged": True,
                "features": plan.cache_plan.describe() if plan.frozen_stages else "",
            }
        )
        progress.phase, progress.step, progress.epoch = progress.phase + 1, 0, progress.epoch + epochs
        progress.data = progress.phase_best = progress.frozen = progress.channels = None
        progress.phase_seconds = progress.seconds

    @staticmethod
    def _better(mark: dict, best: dict | None) -> bool:
        return best is None or ranking_key(mark) > ranking_key({key: best[key] for key in mark})

    def _stopped_early(self) -> bool:
        patience, best = self.config.train.patience_epochs, self.progress.phase_best
        if patience is None or best is None:
            return False
        # In steps; validations stand at rounded ones, so two of them may be a step closer than their epochs say.
        return self.progress.total - best["step"] > patience * self.plan.steps_per_epoch - 1


def digests(leaves: Variables, index: Mapping[str, jax.Array]) -> dict[str, str]:
    """Digests of leaves; of those in `index`, without the channels that learn."""
    values = {path: np.asarray(value) for path, value in leaves.items()}
    still = {p: np.delete(v, np.asarray(index[p]), axis=-1) if p in index else v for p, v in values.items()}
    return {path: params_hash({path: value}) for path, value in still.items()}
