"""Orbax checkpoints of a run: the latest state and the best model on validation, saved asynchronously.

A checkpoint is a step folder with two items: `state`, a tree with `params` (variables of the model by path), `opt` and
`step`; and `progress`, the state of the training loop on the host as JSON, with the paths in `params`. Its metrics rank
it among the other checkpoints. Variables that no phase has changed so far are in no checkpoint: during a run they equal
the initial ones, and at its end they are written once, to frozen.safetensors.
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
    """Return a sort key of checkpoints: the higher score, then the lower loss, then the earlier epoch is better.

    Args:
      metrics: validation `loss`, `epoch` and one score, under any name.
    """
    (score,) = (value for name, value in metrics.items() if name not in ("loss", "epoch"))
    return score, -metrics["loss"], -metrics["epoch"]


class CheckpointManager:
    """The checkpoints of a work directory.

    Args:
      workdir: the work directory.
    """

    def __init__(self, workdir: Path):
        self._frozen_path = workdir / "frozen.safetensors"
        self._paths_by_step: dict[int, list[str]] = {}
        rank: Any = ranking_key  # Orbax asks for a float, but only compares
        best = policies.BestN(get_metric_fn=rank, n=1, keep_checkpoints_without_metrics=False)
        self._manager = ocp.CheckpointManager(
            (workdir / "checkpoints").absolute(),
            item_handlers={"state": ocp.PyTreeCheckpointHandler(), "progress": ocp.JsonCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(1), best]),
                best_fn=rank,
                create=False,
            ),
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @property
    def latest(self) -> int | None:
        """Step of the latest complete checkpoint."""
        return self._manager.latest_step()

    @property
    def best(self) -> int:
        """Step of the best checkpoint on validation; there must be one."""
        step = self._manager.best_step()
        assert step is not None
        return step

    def save(self, step: int, state: dict[str, Any], progress: dict, metrics: dict[str, float] | None) -> None:
        """Start to write a checkpoint in the background.

        Args:
          step: training step.
          state: arrays; `state["params"]` has the variables by path.
          progress: state of the training loop on the host, as JSON.
          metrics: validation score, loss and epoch; None: this step was not validated.
        """
        # Listed here as well, since reading the paths back from Orbax's metadata is slow.
        self._paths_by_step[step] = sorted(state["params"])
        metadata = {"loop": progress, "held": self._paths_by_step[step]}
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(state), progress=ocp.args.JsonSave(metadata))
        self._manager.save(step, args=items, metrics=metrics)

    def progress(self, step: int) -> dict:
        """Return the `progress` that a checkpoint was saved with."""
        return self._metadata(step)["loop"]

    def restore(self, step: int, like: dict[str, Any]) -> dict[str, Any]:
        """Restore the parts of the state that `like` has, with its shapes, dtypes and shardings."""
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.PyTreeRestore(
            like, restore_args=ocp.checkpoint_utils.construct_restore_args(like), partial_restore=True
        )
        return self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]

    def restore_params(self, step: int, like: dict[str, Any]) -> dict[str, Any]:
        """Restore the variables of `like` that are in a checkpoint, with the shapes, dtypes and shardings of `like`."""
        return self.restore(step, {"params": {path: like[path] for path in self._saved_paths(step)}})["params"]

    def save_frozen(self, variables: dict[str, Any]) -> None:
        """Write the variables of a model that are not in the best checkpoint to frozen.safetensors."""
        saved = self._saved_paths(self.best)
        frozen = {path: np.asarray(x) for path, x in variables.items() if path not in saved}
        partial = self._frozen_path.with_suffix(".part")
        safetensors.numpy.save_file(frozen, partial)
        partial.replace(self._frozen_path)

    def load_variables(self, step: int) -> dict[str, np.ndarray]:
        """Return all variables of a finished run's model by path, on the host."""
        params = self._manager.item_metadata(step)["state"].tree["params"]
        restore_args = {"params": {path: ocp.RestoreArgs(restore_type=np.ndarray) for path in params}}
        args = ocp.args.PyTreeRestore({"params": params}, restore_args=restore_args, partial_restore=True)
        frozen = safetensors.numpy.load_file(self._frozen_path) if self._frozen_path.exists() else {}
        return frozen | self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]["params"]

    def _metadata(self, step: int) -> dict:
        items = self._manager.restore(step, args=ocp.args.Composite(progress=ocp.args.JsonRestore()))
        metadata = items["progress"]
        if "held" not in metadata:
            raise UserError(
                f"{self._frozen_path.parent} was written by an earlier tljax: remove the folder and start again."
            )
        return metadata

    def _saved_paths(self, step: int) -> list[str]:
        """Return the paths of the variables in a checkpoint."""
        if step not in self._paths_by_step:
            self._paths_by_step[step] = self._metadata(step)["held"]
        return self._paths_by_step[step]

    def wait(self) -> None:
        """Wait until all checkpoints are complete on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for pending writes and release resources."""
        self._manager.close()
