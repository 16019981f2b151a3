"""Finds weights by name or path, and fills a model with them."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from tljax import models
from tljax.errors import UserError, did_you_mean
from tljax.models import Model
from tljax.models import params as params_lib
from tljax.storage.checkpoints import CheckpointManager
from tljax.storage.run_files import read_json
from tljax.weights.assign import assign_weights
from tljax.weights.catalog import CATALOG, PretrainedConfig
from tljax.weights.detect import detect_backbone
from tljax.weights.formats import LazyTensor, open_tensors
from tljax.weights.formats.keras_h5 import number_from_one
from tljax.weights.layouts import NATIVE, detect_layout, layouts
from tljax.weights.preprocess import PRESETS, Preprocess


@dataclasses.dataclass(frozen=True)
class WeightSource:
    """Weights that were found, and not read yet.

    Attributes:
      name: as the user gave it.
      path: the file, or the work directory.
      sha256: of the file; for a work directory, the digest of its best model's leaves.
      preprocess: what they were trained on; None when nobody knows.
      backbone: the network that they fit; None when nobody has said.
      revision: the commit of a Hub repository.
    """

    name: str
    path: Path
    sha256: str
    preprocess: Preprocess | None
    backbone: str | None = None
    revision: str | None = None

    def describe(self) -> dict[str, str]:
        """Name, digest and revision, for result.json."""
        described = {"name": self.name, "sha256": self.sha256}
        return described | ({"revision": self.revision} if self.revision else {})


def resolve_weights(source: str, preprocess: str | None = None) -> WeightSource:
    """Finds weights, and downloads them where that is needed.

    Args:
      source: a name of the catalogue; a file's path, also as `file:PATH`; `hf:OWNER/REPO`, with `@REVISION` and
        `:FILE` if need be; or `workdir:PATH`, a finished run.
      preprocess: for files that nobody knows; a preset's name. It may not contradict what is known.

    Raises:
      UserError: not there, damaged, or not the file that the catalogue means.
    """
    prefix = source.partition(":")[0]
    found = _FINDERS.get(prefix, _resolve_file)(source)
    if preprocess is None:
        return found
    if preprocess not in PRESETS:
        raise UserError(f'There is no preprocessing "{preprocess}"{did_you_mean(preprocess, PRESETS)}')
    wanted = PRESETS[preprocess]
    if found.preprocess is not None and not found.preprocess.same_values(wanted):
        raise UserError(
            f'{source} was trained with preprocessing "{found.preprocess.name}": '
            f'leave model.preprocess unset instead of "{preprocess}".'
        )
    return dataclasses.replace(found, preprocess=found.preprocess or wanted)


def load(
    model: Model,
    source: str | WeightSource,
    *,
    keep: str | Sequence[str] = (),
    optional: str | Sequence[str] = (),
    ignore: str | Sequence[str] = (),
) -> WeightSource:
    """Fills a model in place from published weights, a file in any layout that its family reads, or a run's best model.

    Args:
      model: from `tljax.models.build`; it may be abstract.
      source: as `find` takes it, or what it returned.
      keep: patterns of paths that keep their value, e.g. "head/.*".
      optional: patterns of paths that are filled where the source has a tensor that fits.
      ignore: patterns of foreign names that are not wanted.

    Returns:
      Where they came from, with their digest and preprocessing.

    Raises:
      UserError: a tensor without a place, a leaf without a tensor, or a wrong shape; it shows all of them.
    """
    weights = source if isinstance(source, WeightSource) else resolve_weights(source)
    with open_weights(weights) as tensors:
        if weights.path.is_dir():
            layout = NATIVE
        else:
            layout = layouts(model.family, model.config)[detect_layout(tensors, model.family, model.config)]
        try:
            assign_weights(tensors, model, layout, keep=keep, optional=optional, ignore=ignore, source=weights.name)
        except UserError as error:
            raise UserError(f"{error}{_looks_like(tensors, model)}") from error
    return weights


def _looks_like(tensors: Mapping[str, np.ndarray], model: Model) -> str:
    """A sentence that names the network that tensors fit to the last one, if that is another than the model's."""
    try:
        best = detect_backbone(tensors)
    except UserError:
        return ""
    other = models.get_variant(best.backbone) != (model.family, model.config)
    return f" The tensors are those of {best.backbone}, in the names of {best.layout}." * (
        other and best.match.complete
    )


@contextlib.contextmanager
def open_weights(weights: WeightSource) -> Iterator[Mapping[str, LazyTensor | np.ndarray]]:
    """Opens what `find` found: foreign name (of a run: path) → tensor."""
    if weights.path.is_dir():
        with CheckpointManager(weights.path) as checkpoints:
            yield checkpoints.load_variables(checkpoints.best)
        return
    with open_tensors(weights.path) as tensors:
        # Keras numbers nameless layers on through a session: what a file has as conv2d_95 may be its first.
        renamed = number_from_one(tensors) if weights.path.suffix.lower() in (".h5", ".hdf5") else {}
        yield {renamed.get(name, name): tensor for name, tensor in tensors.items()}


def params_hash(leaves: params_lib.Variables) -> str:
    """SHA-256 over all leaves in path order: path, type, shape and bytes."""
    digest = hashlib.sha256()
    for path in sorted(leaves):
        value = np.asarray(leaves[path])
        digest.update(f"{path} {value.dtype} {value.shape} ".encode())
        digest.update(np.ascontiguousarray(value))
    return digest.hexdigest()


def _resolve_file(source: str) -> WeightSource:
    """A file by its path, or by its name in the catalogue if it lies in `$TLJAX_WEIGHTS_DIR`."""
    entry, path = CATALOG.get(source), Path(source.removeprefix("file:"))
    if entry is not None:
        if (kept := _kept(entry)) is None:
            raise UserError(f"{source} needs TLJAX_WEIGHTS_DIR, the folder that has {entry.source}.")
        path = kept
    if not path.is_file():
        hint = "" if entry or "/" in source else did_you_mean(source, CATALOG)
        raise UserError(f"There are no weights at {path}{hint or '.'}")
    sha256 = _digest(path)
    if entry is not None and sha256 != entry.digest:
        raise UserError(f"{path} is not {source}: its SHA-256 is {sha256}, expected {entry.digest}.")
    digest = _digest(path, "md5") if path.suffix == ".h5" else sha256  # what its publisher would have published
    entry = next((e for e in CATALOG.values() if e.digest and digest.startswith(e.digest)), None)
    return WeightSource(source, path, sha256, entry and entry.preprocess, entry and entry.backbone)


def _find_url(source: str) -> WeightSource:
    """A file that torchvision or Keras publishes: in `$TLJAX_WEIGHTS_DIR`, the cache, or from its address."""
    entry = CATALOG.get(source)
    if entry is None:
        raise UserError(f'There are no published weights "{source}"{did_you_mean(source, CATALOG)}')
    path = _kept(entry)
    if path is None or not path.is_file():
        from tljax.weights.download import from_url  # late: HTTP clients take half a second

        path = from_url(entry.source, **{"md5" if entry.digest_is_md5 else "prefix": entry.digest})
    elif not (found := _digest(path, "md5" if entry.digest_is_md5 else "sha256")).startswith(entry.digest):
        raise UserError(f"{path} is not {source}: its digest is {found}, expected {entry.digest}.")
    return WeightSource(source, path, _digest(path), entry.preprocess, entry.backbone)


def _find_hub(source: str) -> WeightSource:
    """A file of a Hub repository."""
    repo, _, filename = source.removeprefix("hf:").partition(":")
    repo, _, revision = repo.partition("@")
    entry = CATALOG.get(f"hf:{repo}")
    from tljax.weights.hub import from_hub  # late: see above

    try:
        fetched = from_hub(repo, filename or None, revision or None)
    except UserError as error:
        # A slip in a name that the catalogue nearly knows is likelier than a repository that we may not see.
        close = "" if entry else did_you_mean(f"hf:{repo}", CATALOG)
        raise UserError(f"{str(error).rstrip('.')}{close}" if "did you mean" in close else str(error)) from error
    return WeightSource(
        source, fetched.path, fetched.sha256, entry and entry.preprocess, entry and entry.backbone, fetched.revision
    )


def _find_workdir(source: str) -> WeightSource:
    path = Path(source.removeprefix("workdir:"))
    if not (path / "result.json").is_file():
        raise UserError(f"{path} holds no finished run: it has no result.json.")
    result = read_json(path / "result.json")
    return WeightSource(source, path, result["parameters_digest"], Preprocess.from_dict(result["preprocess"]))


_FINDERS = {"workdir": _find_workdir, "hf": _find_hub, "torchvision": _find_url, "keras": _find_url}


def _kept(entry: PretrainedConfig) -> Path | None:
    """Where a file of the catalogue would lie in `$TLJAX_WEIGHTS_DIR`; None if that is unset."""
    folder = os.environ.get("TLJAX_WEIGHTS_DIR")
    return Path(folder) / entry.source.rpartition("/")[2] if folder else None


def _digest(path: Path, algorithm: str = "sha256") -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
