"""Finds weights by name or path, and fills a model with them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tljax.checkpoints import Checkpoints
from tljax.errors import UserError, nearest
from tljax.models import Model
from tljax.models import state as leaves_of
from tljax.weights.catalogue import CATALOGUE
from tljax.weights.port import port
from tljax.weights.preprocess import PRESETS, Preprocess
from tljax.weights.rules import IGNORE, TORCHVISION, Rule


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights that were found, and not read yet.

    Attributes:
      name: as the user gave it.
      path: the file, or the work directory.
      sha256: of the file; for a work directory, the digest of its best model's leaves.
      preprocess: what they were trained on; None when nobody knows.
    """

    name: str
    path: Path
    sha256: str
    preprocess: Preprocess | None

    def describe(self) -> dict[str, str]:
        """Name and digest, for result.json."""
        return {"name": self.name, "sha256": self.sha256}


def find(source: str, preprocess: str | None = None) -> Weights:
    """Finds weights by catalogue name, path of a .safetensors file, or `workdir:PATH`.

    Args:
      source: the name or path.
      preprocess: for files that nobody knows; a preset's name. It may not contradict what is known.

    Raises:
      UserError: not there, damaged, or not the file that the catalogue means.
    """
    found = _find_workdir(source) if source.startswith("workdir:") else _find_file(source)
    if preprocess is None or found.preprocess == PRESETS[preprocess]:
        return found
    if found.preprocess is not None:
        raise UserError(
            f'{source} was trained with preprocessing "{found.preprocess.name}": '
            f'leave model.preprocess unset instead of "{preprocess}".'
        )
    return dataclasses.replace(found, preprocess=PRESETS[preprocess])


def load(
    model: Model,
    source: str | Weights,
    *,
    keep: str | Sequence[str] = (),
    ignore: str | Sequence[str] = IGNORE,
) -> Weights:
    """Fills a model in place from weights in torchvision's names, or from a run's best model.

    Args:
      model: from `tljax.models.build`.
      source: as `find` takes it, or what it returned.
      keep: patterns of paths that keep their value, e.g. "head/.*".
      ignore: patterns of foreign names that are not wanted.

    Returns:
      Where they came from, with their digest and preprocessing.

    Raises:
      UserError: a tensor without a place, a leaf without a tensor, or a wrong shape; it shows all of them.
    """
    weights = source if isinstance(source, Weights) else find(source)
    if weights.path.is_dir():
        tensors, rules = _read_workdir(weights.path), [Rule("(.*)", r"\1")]
    else:
        tensors, rules = _read_safetensors(weights.path), TORCHVISION[model.family](model.config)
    port(tensors, model, rules, keep=keep, ignore=ignore, source=weights.name)
    return weights


def parameters_digest(leaves: leaves_of.Leaves) -> str:
    """SHA-256 over all leaves in path order: path, type, shape and bytes."""
    digest = hashlib.sha256()
    for path in sorted(leaves):
        value = np.asarray(leaves[path])
        digest.update(f"{path} {value.dtype} {value.shape} ".encode())
        digest.update(np.ascontiguousarray(value))
    return digest.hexdigest()


def _find_file(source: str) -> Weights:
    entry, path = CATALOGUE.get(source), Path(source)
    if entry is not None:
        if "TLJAX_WEIGHTS_DIR" not in os.environ:
            raise UserError(f"{source} needs TLJAX_WEIGHTS_DIR, the folder that has {source}.safetensors.")
        path = Path(os.environ["TLJAX_WEIGHTS_DIR"]) / f"{source}.safetensors"
    if not path.is_file():
        hint = "" if entry or "/" in source else nearest(source, CATALOGUE)
        raise UserError(f"There are no weights at {path}{hint or '.'}")
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if entry is not None and sha256 != entry.sha256:
        raise UserError(f"{path} is not {source}: its SHA-256 is {sha256}, expected {entry.sha256}.")
    known = {e.sha256: e.preprocess for e in CATALOGUE.values()}
    return Weights(source, path, sha256, known.get(sha256))


def _find_workdir(source: str) -> Weights:
    path = Path(source.removeprefix("workdir:"))
    if not (path / "result.json").is_file():
        raise UserError(f"{path} holds no finished run: it has no result.json.")
    result = json.loads((path / "result.json").read_text())
    return Weights(source, path, result["parameters_digest"], Preprocess.from_dict(result["preprocess"]))


def _read_workdir(path: Path) -> dict[str, np.ndarray]:
    with Checkpoints(path) as checkpoints:
        return checkpoints.read_params(checkpoints.best)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is not a readable safetensors file: {error}.") from error
