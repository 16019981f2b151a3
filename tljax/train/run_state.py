"""Host-side bookkeeping of one training run: progress, metrics, checkpoints."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from tljax.config import Config
from tljax.data import Split
from tljax.errors import TrainingStopped
from tljax.models.params import Variables
from tljax.storage.checkpoints import CheckpointManager, ranking_key
from tljax.tasks import Task, compute_metrics, metrics_of, task_of
from tljax.train.callbacks import MetricWriter, TrainProgress, empty_sums
from tljax.train.optimizer import learning_rate, optimizer_bytes
from tljax.train.plan import PhasePlan
from tljax.weights import params_hash


@dataclasses.dataclass(eq=False)
class RunState:
    """Host-side bookkeeping of one training run: progress, metrics, checkpoints.

    Attributes:
      config: config of the run.
      plans: plans of the phases.
      checkpoints: checkpoints in the work directory.
      log: receives the metrics of validations.
      progress: progress of the run.
      failure: error that ended the run early, or None.
      final_params: trained variables at the end of the latest finished phase, or None before that.
    """

    config: Config
    plans: list[PhasePlan]
    checkpoints: CheckpointManager
    log: MetricWriter
    progress: TrainProgress = dataclasses.field(default_factory=TrainProgress)
    failure: TrainingStopped | None = None
    final_params: Variables | None = None
    _started: float = 0.0
    _recorded: int = 0

    def resume(self) -> bool:
        """Load the progress of the latest checkpoint; return False if there is none."""
        if (latest := self.checkpoints.latest) is None:
            return False
        self.progress = TrainProgress(**self.checkpoints.progress(latest))
        self.log.truncate(self.progress.rows)
        return True

    def position(self) -> tuple[int, int] | None:
        """Return phase index and step of the latest checkpoint, or None."""
        if (latest := self.checkpoints.latest) is None:
            return None
        progress = self.checkpoints.progress(latest)
        return progress["phase"], progress["step"]

    def seconds_before(self) -> float:
        """Return the training time of earlier sessions."""
        latest = self.checkpoints.latest
        return 0.0 if latest is None else self.checkpoints.progress(latest)["seconds"]

    @property
    def plan(self) -> PhasePlan:
        """The plan of the current phase."""
        return self.plans[self.progress.phase]

    @property
    def task(self) -> Task:
        """The task."""
        return task_of(self.config)

    def compute_metrics(
        self, predictions: Mapping[str, np.ndarray], split: Split, side: int
    ) -> dict[str, float | None]:
        """Return the metrics of the run's predictions; `side` is that of the network's input in pixels."""
        return compute_metrics(self.task, metrics_of(self.config), predictions, split, side)

    def in_phase(self, index: int) -> bool:
        """Return whether the run is in this phase and has not failed."""
        return self.failure is None and self.progress.phase == index

    def start_phase(self, frozen: Mapping[str, str]) -> None:
        """Start or resume a phase; `frozen` contains the hashes of the frozen variables by path."""
        self._started = time.monotonic() - self.progress.seconds
        self._recorded = self.progress.total
        if self.progress.frozen is None:
            self.progress.frozen = dict(frozen)

    def advance(self, steps: int) -> None:
        """Count steps that were sent to the device."""
        self.progress.step += steps
        self.progress.total += steps

    def record(self, metrics: Mapping[str, np.ndarray]) -> None:
        """Add the metrics [steps, ...] of finished steps to the sums.

        Raises:
          TrainingStopped: a loss or update is not finite.
        """
        if not metrics["finite"].all():
            self._stop_not_finite(metrics)
        sums = dict(self.progress.sums)
        # Added step by step, so that the sums do not depend on how steps are grouped into programs.
        for loss, correct, terms in zip(metrics["loss"], metrics["correct"], metrics["terms"], strict=True):
            sums["loss"] += float(loss)
            sums["correct"] += float(correct)
            sums["terms"] = [float(t) + s for t, s in zip(terms, sums["terms"] or [0.0] * len(terms), strict=True)]
        sums["steps"] += len(metrics["loss"])
        self._recorded += len(metrics["loss"])
        self.progress.sums = sums

    def _stop_not_finite(self, metrics: Mapping[str, np.ndarray]) -> None:
        first = int(np.argmin(metrics["finite"]))
        self.checkpoints.wait()
        latest = self.checkpoints.latest
        step = self._recorded + first + 1
        raise TrainingStopped(
            f"The loss or its update is not finite at step {step} (loss {metrics['loss'][first]}); "
            + (f"the last good checkpoint is step {latest}." if latest is not None else "there is no checkpoint yet.")
            + " Try a smaller optim.lr, optim.clip_norm, or optim.warmup_epochs."
        )

    def record_validation(self, valid: dict[str, float | None]) -> dict[str, float]:
        """Record the metrics of a validation and write them to the log; return the metrics that rank its checkpoint."""
        plan, progress = self.plan, self.progress
        sums, progress.sums = progress.sums, empty_sums()
        ranked_by = self.task.metrics[0].name
        ranking = {
            ranked_by: valid[ranked_by] or 0.0,  # None: there was nothing to find
            "loss": valid["loss"],
            "epoch": progress.epoch + progress.step / plan.steps_per_epoch,
        }
        is_best = self._is_better(ranking, progress.best)
        candidate = ranking | {"step": progress.total, "phase": plan.phase.name}
        progress.best = candidate if is_best else progress.best
        progress.phase_best = candidate if self._is_better(ranking, progress.phase_best) else progress.phase_best
        progress.rows += 1
        row = {
            "phase": plan.phase.name,
            "epoch": ranking["epoch"],
            "step": progress.total,
            "lr": learning_rate(plan.optim, progress.step - 1, plan.steps, plan.steps_per_epoch),
            "seconds": time.monotonic() - self._started,
            "train": self._train_metrics(sums),
            "valid": valid,
            "best": is_best,
        }
        self.log.write(row)
        return ranking

    def _train_metrics(self, sums: dict) -> dict[str, float]:
        steps, size = sums["steps"], self.config.train.batch_size
        metrics = {"loss": sums["loss"] / steps, self.task.train_metric_name: sums["correct"] / (steps * size)}
        if len(sums["terms"]) > 1:  # each loss, unweighted
            names = [name for name, _ in self.plan.phase.losses]
            metrics |= {name: term / steps for name, term in zip(names, sums["terms"], strict=True)}
        return metrics

    def save(
        self,
        arrays: dict,
        position: Any,
        ranking: dict[str, float] | None,
        frozen_hashes: Callable[[], Mapping[str, str]],
        trainable: int,
    ) -> None:
        """Save a checkpoint; at the end of a phase, check the frozen variables and move on to the next phase.

        Args:
          arrays: `params`, the variables that training has changed, with `opt_state`, `step` and others.
          position: position of the batch iterator.
          ranking: metrics from `record_validation`, or None without a validation.
          frozen_hashes: function that returns the current hashes of the frozen variables.
          trainable: number of trainable parameters, for the record of the phase.

        Raises:
          TrainingStopped: the phase has changed a frozen variable.
        """
        plan, progress = self.plan, self.progress
        progress.data = position
        progress.seconds = time.monotonic() - self._started
        if progress.step == plan.steps or (ranking is not None and self._stopped_early()):
            self._finish_phase(arrays["opt_state"], trainable, frozen_hashes())
            self.final_params = arrays["params"]
        self.checkpoints.save(progress.total, arrays, dataclasses.asdict(progress), ranking)

    def _finish_phase(self, opt_state: Any, trainable: int, hashes: Mapping[str, str]) -> None:
        plan, progress = self.plan, self.progress
        assert progress.frozen is not None  # `start_phase` sets it
        if changed := [path for path, digest in hashes.items() if digest != progress.frozen[path]]:
            raise TrainingStopped(f'Phase "{plan.phase.name}" changed frozen variables: {", ".join(changed)}.')
        epochs = progress.step / plan.steps_per_epoch
        progress.phases.append(
            {
                "name": plan.phase.name,
                "losses": dict(plan.phase.losses),
                "epochs": epochs,
                "steps": progress.step,
                "seconds": progress.seconds - progress.phase_seconds,
                "trainable_parameters": trainable,
                "optimizer_bytes": optimizer_bytes(opt_state),
                "frozen_unchanged": True,
                "features": plan.cache_plan.describe() if plan.frozen_stages else "",
            }
        )
        progress.phase += 1
        progress.step = 0
        progress.epoch += epochs
        progress.data = progress.phase_best = progress.frozen = progress.channels = None
        progress.phase_seconds = progress.seconds

    @staticmethod
    def _is_better(ranking: dict, best: dict | None) -> bool:
        return best is None or ranking_key(ranking) > ranking_key({key: best[key] for key in ranking})

    def _stopped_early(self) -> bool:
        patience, best = self.config.train.patience_epochs, self.progress.phase_best
        if patience is None or best is None:
            return False
        # Validations are at rounded steps, so that two of them may be one step closer than their epochs.
        return self.progress.total - best["step"] > patience * self.plan.steps_per_epoch - 1


def param_hashes(variables: Variables, channel_index: Mapping[str, jax.Array]) -> dict[str, str]:
    """Return the hash of each variable; for those in `channel_index`, without the trainable channels."""
    hashes = {}
    for path, value in variables.items():
        array = np.asarray(value)
        if path in channel_index:
            array = np.delete(array, np.asarray(channel_index[path]), axis=-1)
        hashes[path] = params_hash({path: array})
    return hashes
