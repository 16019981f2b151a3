"""Orbax checkpoints of a run: the latest state and the best validation model, both kept, saved asynchronously.

A checkpoint is one step folder with the items `state`, a tree with `params` (every leaf of the model by path), `opt`
and `step`, and `progress`, the host's side of the loop as JSON. Its metrics say how good the model is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies


def goodness(metrics: dict[str, float]) -> tuple[float, float, float]:
    """Higher validation accuracy, then lower loss, then the earlier epoch."""
    return metrics["accuracy"], -metrics["loss"], -metrics["epoch"]


class Checkpoints:
    """The checkpoints of one work directory."""

    def __init__(self, workdir: Path):
        best = policies.BestN(get_metric_fn=goodness, n=1, keep_checkpoints_without_metrics=False)
        self._manager = ocp.CheckpointManager(
            (workdir / "checkpoints").absolute(),
            item_handlers={"state": ocp.PyTreeCheckpointHandler(), "progress": ocp.JsonCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(1), best]),
                best_fn=goodness,
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
        """Starts to write a checkpoint; `metrics` (accuracy, loss, epoch) only after a validation."""
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(state), progress=ocp.args.JsonSave(progress))
        self._manager.save(step, args=items, metrics=metrics)

    def progress(self, step: int) -> dict:
        """The host's side of a checkpoint."""
        return self._manager.restore(step, args=ocp.args.Composite(progress=ocp.args.JsonRestore()))["progress"]

    def restore(self, step: int, like: dict[str, Any]) -> dict[str, Any]:
        """Restores the parts of the state that `like` has, with its shapes, types and shardings."""
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.PyTreeRestore(
            like, restore_args=ocp.checkpoint_utils.construct_restore_args(like), partial_restore=True
        )
        return self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]

    def read_params(self, step: int) -> dict[str, np.ndarray]:
        """Every leaf of a checkpoint's model by path, on the host."""
        tree = self._manager.item_metadata(step)["state"].tree
        restore = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), {"params": tree["params"]})
        args = ocp.args.PyTreeRestore({"params": tree["params"]}, restore_args=restore, partial_restore=True)
        return self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]["params"]

    def wait(self) -> None:
        """Returns when every checkpoint is finished on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finishes what is being written."""
        self._manager.close()
