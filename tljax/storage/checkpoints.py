"""Orbax checkpoints of a run: the latest state and the best validation model, both kept, saved asynchronously.

A checkpoint is one step folder with the items `state`, a tree with `params` (leaves of the model by path), `opt` and
`step`, and `progress`, the host's side of the loop as JSON, with the paths in `params`. Its metrics say how good the
model is. Leaves that no phase has changed so far stand in no checkpoint: while a run goes on they are those that it
began with, and a finished run has them once, in frozen.safetensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import safetensors.numpy
from orbax.checkpoint import checkpoint_managers as policies

from tljax.errors import UserError


def ranking_key(metrics: dict[str, float]) -> tuple[float, float, float]:
    """A higher score on validation, by whatever name, then a lower loss, then the earlier epoch."""
    (score,) = (value for name, value in metrics.items() if name not in ("loss", "epoch"))
    return score, -metrics["loss"], -metrics["epoch"]


class CheckpointManager:
    """The checkpoints of one work directory."""

    def __init__(self, workdir: Path):
        self._frozen, self._held = workdir / "frozen.safetensors", {}
        best = policies.BestN(get_metric_fn=ranking_key, n=1, keep_checkpoints_without_metrics=False)
        self._manager = ocp.CheckpointManager(
            (workdir / "checkpoints").absolute(),
            item_handlers={"state": ocp.PyTreeCheckpointHandler(), "progress": ocp.JsonCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(1), best]),
                best_fn=ranking_key,
                create=False,
            ),
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @property
    def latest(self) -> int | None:
        """Step of the last finished checkpoint."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """Step of the best validation model."""
        return self._manager.best_step()

    def save(self, step: int, state: dict[str, Any], progress: dict, metrics: dict[str, float] | None) -> None:
        """Starts to write a checkpoint; `metrics` (the score, loss, epoch) only after a validation."""
        # Orbax takes its time to say which leaves a checkpoint holds.
        self._held[step] = sorted(state["params"])
        told = {"loop": progress, "held": self._held[step]}
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(state), progress=ocp.args.JsonSave(told))
        self._manager.save(step, args=items, metrics=metrics)

    def progress(self, step: int) -> dict:
        """The host's side of a checkpoint."""
        return self._metadata(step)["loop"]

    def restore(self, step: int, like: dict[str, Any]) -> dict[str, Any]:
        """Restores the parts of the state that `like` has, with its shapes, types and shardings."""
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.PyTreeRestore(
            like, restore_args=ocp.checkpoint_utils.construct_restore_args(like), partial_restore=True
        )
        return self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]

    def restore_params(self, step: int, like: dict[str, Any]) -> dict[str, Any]:
        """Those of the leaves `like` that a checkpoint holds, with their shapes, types and shardings."""
        return self.restore(step, {"params": {path: like[path] for path in self._saved_paths(step)}})["params"]

    def save_frozen(self, leaves: dict[str, Any]) -> None:
        """Writes what the best checkpoint does not hold of a model's leaves, so that the folder has them all."""
        held = self._saved_paths(self.best)
        frozen = {path: np.asarray(x) for path, x in leaves.items() if path not in held}
        partial = self._frozen.with_suffix(".part")
        safetensors.numpy.save_file(frozen, partial)
        partial.replace(self._frozen)

    def load_variables(self, step: int) -> dict[str, np.ndarray]:
        """Every leaf of a finished run's model by path, on the host."""
        params = self._manager.item_metadata(step)["state"].tree["params"]
        restore = {"params": {path: ocp.RestoreArgs(restore_type=np.ndarray) for path in params}}
        args = ocp.args.PyTreeRestore({"params": params}, restore_args=restore, partial_restore=True)
        frozen = safetensors.numpy.load_file(self._frozen) if self._frozen.exists() else {}
        return frozen | self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]["params"]

    def _metadata(self, step: int) -> dict:
        told = self._manager.restore(step, args=ocp.args.Composite(progress=ocp.args.JsonRestore()))["progress"]
        if "held" not in told:
            raise UserError(f"{self._frozen.parent} was begun by an earlier tljax: remove the folder and start again.")
        return told

    def _saved_paths(self, step: int) -> list[str]:
        """Of the leaves that a checkpoint holds."""
        if step not in self._held:
            self._held[step] = self._metadata(step)["held"]
        return self._held[step]

    def wait(self) -> None:
        """Returns when every checkpoint is finished on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finishes what is being written."""
        self._manager.close()
