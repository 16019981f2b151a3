"""Resolve weights by name or path, and load them into a model."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from tljax import models
from tljax.errors import UserError, did_you_mean
from tljax.models import Model
from tljax.storage.checkpoints import CheckpointManager
from tljax.storage.run_files import read_json
from tljax.weights.assign import assign_weights
from tljax.weights.catalog import CATALOG, PretrainedConfig
from tljax.weights.detect import detect_backbone
from tljax.weights.formats import Tensors, open_tensors
from tljax.weights.formats.keras_h5 import number_from_one
from tljax.weights.layouts import NATIVE, detect_layout, layouts
from tljax.weights.packages import from_package
from tljax.weights.preprocess import PRESETS, Preprocess


@dataclasses.dataclass(frozen=True)
class WeightSource:
    """Resolved weights whose tensors have not been read yet.

    Attributes:
      name: as the user gave it.
      path: the file, or the work directory.
      sha256: digest of the file; for a work directory, `params_hash` of its best model.
      preprocess: the preprocessing they were trained with; None if unknown.
      backbone: name of the backbone they fit; None if unknown.
      revision: commit of a Hub repository, or version of a package.
    """

    name: str
    path: Path
    sha256: str
    preprocess: Preprocess | None
    backbone: str | None = None
    revision: str | None = None

    def describe(self) -> dict[str, str]:
        """Return name, digest and revision, for result.json."""
        described = {"name": self.name, "sha256": self.sha256}
        return described | ({"revision": self.revision} if self.revision else {})


def resolve_weights(source: str, preprocess: str | None = None) -> WeightSource:
    """Locate weights, and download them if needed.

    Args:
      source: a catalog name; a file's path, also as `file:PATH`; `hf:OWNER/REPO`, optionally with `@REVISION` and
        `:FILE`; `package:DISTRIBUTION/FILE`, a file of an installed package; or `workdir:PATH`, a finished run.
      preprocess: name of a preset, for files that are not in the catalog. If the preprocessing is already known, it
        must have the same values.

    Raises:
      UserError: the weights do not exist, are damaged, or differ from the file in the catalog.
    """
    prefix = source.partition(":")[0]
    resolved = _RESOLVERS.get(prefix, _resolve_file)(source)
    if preprocess is None:
        return resolved
    if preprocess not in PRESETS:
        raise UserError(f'There is no preprocessing "{preprocess}"{did_you_mean(preprocess, PRESETS)}')
    requested = PRESETS[preprocess]
    if resolved.preprocess is not None and not resolved.preprocess.same_values(requested):
        raise UserError(
            f'{source} was trained with preprocessing "{resolved.preprocess.name}": '
            f'leave model.preprocess unset instead of "{preprocess}".'
        )
    return dataclasses.replace(resolved, preprocess=resolved.preprocess or requested)


def load(
    model: Model,
    source: str | WeightSource,
    *,
    keep: str | Sequence[str] = (),
    optional: str | Sequence[str] = (),
    ignore: str | Sequence[str] = (),
) -> WeightSource:
    """Load weights into a model in place: published ones, a file in any layout of its family, or a run's best model.

    Args:
      model: from `tljax.models.create_model`; it may be abstract.
      source: as `resolve_weights` takes it, or its result.
      keep: patterns of paths that keep their value, e.g. "head/.*".
      optional: patterns of paths that are filled only if the source has a tensor that fits.
      ignore: patterns of foreign names that are skipped.

    Returns:
      The source of the weights, with its digest and preprocessing.

    Raises:
      UserError: unexpected tensors, missing variables or mismatched shapes; the message lists them.
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
            raise UserError(f"{error}{_other_backbone_hint(tensors, model)}") from error
    return weights


def _other_backbone_hint(tensors: Tensors, model: Model) -> str:
    """Return a sentence that names the backbone the tensors fit completely, if it is not the model's; else ""."""
    try:
        best = detect_backbone(tensors)
    except UserError:
        return ""
    if not best.match.complete or models.get_variant(best.backbone) == (model.family, model.config):
        return ""
    return f" The tensors match {best.backbone} in the {best.layout} layout."


@contextlib.contextmanager
def open_weights(weights: WeightSource) -> Iterator[Tensors]:
    """Open resolved weights as {foreign name: tensor}; for a run, {variable path: array}."""
    if weights.path.is_dir():
        with CheckpointManager(weights.path) as checkpoints:
            yield checkpoints.load_variables(checkpoints.best)
        return
    with open_tensors(weights.path) as tensors:
        # Keras numbers unnamed layers across a whole session: a file's conv2d_95 may be its first convolution.
        renamed = number_from_one(tensors) if weights.path.suffix.lower() in (".h5", ".hdf5") else {}
        yield {renamed.get(name, name): tensor for name, tensor in tensors.items()}


def params_hash(variables: Mapping[str, jax.Array | np.ndarray]) -> str:
    """Return the SHA-256 of all variables in path order, over path, dtype, shape and bytes."""
    digest = hashlib.sha256()
    for path in sorted(variables):
        value = np.asarray(variables[path])
        digest.update(f"{path} {value.dtype} {value.shape} ".encode())
        digest.update(np.ascontiguousarray(value))
    return digest.hexdigest()


def _resolve_file(source: str) -> WeightSource:
    """Resolve a file by its path, or by its catalog name if it is in `$TLJAX_WEIGHTS_DIR`."""
    entry = CATALOG.get(source)
    if entry is not None and entry.source.startswith("package:"):
        return _resolve_package(source)
    path = Path(source.removeprefix("file:"))
    if entry is not None:
        local_path = _local_path(entry)
        if local_path is None:
            raise UserError(f"{source} needs TLJAX_WEIGHTS_DIR, the folder that contains {entry.source}.")
        path = local_path
    if not path.is_file():
        hint = "" if entry or "/" in source else did_you_mean(source, CATALOG)
        raise UserError(f"There are no weights at {path}{hint or '.'}")
    return _identify(source, path, entry)


def _identify(source: str, path: Path, entry: PretrainedConfig | None, revision: str | None = None) -> WeightSource:
    """Return a file as a source; if its digest is that of a catalog entry, preprocessing and backbone are known.

    Raises:
      UserError: `entry` is given, and the file has another digest.
    """
    sha256 = _file_digest(path)
    if entry is not None and sha256 != entry.digest:
        raise UserError(f"{path} is not {source}: its SHA-256 is {sha256}, expected {entry.digest}.")
    digest = _file_digest(path, "md5") if path.suffix == ".h5" else sha256  # Keras publishes MD5
    entry = next((e for e in CATALOG.values() if e.digest and digest.startswith(e.digest)), None)
    return WeightSource(source, path, sha256, entry and entry.preprocess, entry and entry.backbone, revision)


def _resolve_package(source: str) -> WeightSource:
    """Resolve a file of an installed package, by its source or its catalog name."""
    packaged = {e.source: e for e in CATALOG.values() if e.source.startswith("package:")}
    entry = CATALOG.get(source) or packaged.get(source)
    path = _local_path(entry) if entry else None
    if path is not None and path.is_file():
        return _identify(source, path, entry)
    distribution, _, filename = (entry.source if entry else source).removeprefix("package:").partition("/")
    known = [key.removeprefix("package:").partition("/")[0] for key in packaged]
    file = from_package(distribution, filename, known)
    return _identify(source, file.path, entry, file.version)


def _resolve_url(source: str) -> WeightSource:
    """Resolve a file of torchvision or Keras: from `$TLJAX_WEIGHTS_DIR`, from the cache, or by download."""
    entry = CATALOG.get(source)
    if entry is None:
        raise UserError(f'There are no published weights "{source}"{did_you_mean(source, CATALOG)}')
    path = _local_path(entry)
    if path is None or not path.is_file():
        from tljax.weights.download import from_url  # imported here: HTTP clients take half a second

        md5, prefix = (entry.digest, None) if entry.digest_is_md5 else (None, entry.digest)
        path = from_url(entry.source, prefix=prefix, md5=md5)
    else:
        digest = _file_digest(path, "md5" if entry.digest_is_md5 else "sha256")
        assert entry.digest is not None  # only entries of the Hub have none
        if not digest.startswith(entry.digest):
            raise UserError(f"{path} is not {source}: its digest is {digest}, expected {entry.digest}.")
    return WeightSource(source, path, _file_digest(path), entry.preprocess, entry.backbone)


def _resolve_hub(source: str) -> WeightSource:
    """Resolve a file of a Hub repository."""
    repo, _, filename = source.removeprefix("hf:").partition(":")
    repo, _, revision = repo.partition("@")
    entry = CATALOG.get(f"hf:{repo}")
    from tljax.weights.hub import from_hub  # imported here: HTTP clients take half a second

    try:
        file = from_hub(repo, filename or None, revision or None)
    except UserError as error:
        # A name close to a catalog entry is more likely a typo than a private repository.
        hint = "" if entry else did_you_mean(f"hf:{repo}", CATALOG)
        message = f"{str(error).rstrip('.')}{hint}" if "did you mean" in hint else str(error)
        raise UserError(message) from error
    return WeightSource(
        source, file.path, file.sha256, entry and entry.preprocess, entry and entry.backbone, file.revision
    )


def _resolve_run(source: str) -> WeightSource:
    """Resolve the best model of a finished run."""
    path = Path(source.removeprefix("workdir:"))
    if not (path / "result.json").is_file():
        raise UserError(f"{path} holds no finished run: it has no result.json.")
    result = read_json(path / "result.json")
    return WeightSource(source, path, result["parameters_digest"], Preprocess.from_dict(result["preprocess"]))


_RESOLVERS = {
    "workdir": _resolve_run,
    "hf": _resolve_hub,
    "torchvision": _resolve_url,
    "keras": _resolve_url,
    "package": _resolve_package,
}


def _local_path(entry: PretrainedConfig) -> Path | None:
    """Return the path of a catalog entry in `$TLJAX_WEIGHTS_DIR`, whether it exists or not; None if that is unset."""
    folder = os.environ.get("TLJAX_WEIGHTS_DIR")
    return Path(folder) / entry.source.rpartition("/")[2] if folder else None


def _file_digest(path: Path, algorithm: str = "sha256") -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
