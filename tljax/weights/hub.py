"""Download a file from the Hugging Face Hub with its own client and cache, and check its digest."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, constants, errors, hf_hub_download
from rich.console import Console

from tljax.errors import UserError, did_you_mean
from tljax.weights.download import error_summary

DEFAULT_FILENAMES = ("model.safetensors", "pytorch_model.bin")
_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".h5")


@dataclasses.dataclass(frozen=True)
class HubFile:
    """A downloaded file.

    Attributes:
      path: location in the cache.
      sha256: digest of its content.
      revision: commit of the repository.
    """

    path: Path
    sha256: str
    revision: str


def from_hub(
    repo: str,
    filename: str | None = None,
    revision: str | None = None,
    *,
    console: Console | None = None,
    endpoint: str | None = None,
    cache_dir: Path | None = None,
) -> HubFile:
    """Download a file of a repository, unless it is cached.

    A cached commit needs no network. A branch is looked up; if the Hub cannot be reached, the cached file is used and
    a message says so.

    Args:
      repo: "owner/name".
      filename: path in the repository; by default `model.safetensors`, or else `pytorch_model.bin`.
      revision: branch, tag or commit; "main" by default.
      console: console for messages.
      endpoint: address of the Hub; `HF_ENDPOINT` by default.
      cache_dir: cache folder; `HF_HUB_CACHE` by default.

    Raises:
      UserError: the download failed, or the file is damaged.
    """
    options = {"revision": revision, "endpoint": endpoint, "cache_dir": cache_dir}
    filenames = (filename,) if filename else DEFAULT_FILENAMES
    try:
        is_commit = re.fullmatch("[0-9a-f]{40}", revision or "")
        cached = _find_cached(repo, filenames[:1], options) if is_commit else None
        name, path = cached or _look_up(repo, filenames, options, console or Console())
        return _verify(repo, name, path)
    except errors.LocalEntryNotFoundError as error:  # the Hub was reached for the list of files, but not afterwards
        raise UserError(_error_message(error.__cause__ or error, repo, revision, endpoint)) from error
    except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:  # the Xet client raises RuntimeError
        raise UserError(_error_message(error, repo, revision, endpoint)) from error


def _find_cached(repo: str, filenames: tuple[str, ...], options: dict) -> tuple[str, Path] | None:
    """Return name and path of the first of `filenames` that is cached."""
    for name in filenames:
        try:
            return name, Path(hf_hub_download(repo, name, local_files_only=True, **options))
        except errors.LocalEntryNotFoundError:
            continue
    return None


def _look_up(repo: str, filenames: tuple[str, ...], options: dict, console: Console) -> tuple[str, Path]:
    """Return name and path of the first of `filenames` in the repository, downloaded if needed.

    Listing the files first shows at once, before any of the client's retries, whether the Hub can be reached.
    """
    endpoint = options["endpoint"] or constants.ENDPOINT
    try:
        info = HfApi(endpoint=endpoint).model_info(repo, revision=options["revision"], timeout=10)
    except (httpx2.RequestError, errors.OfflineModeIsEnabled, errors.HfHubHTTPError) as error:
        if isinstance(error, errors.HfHubHTTPError) and error.response.status_code < 500:
            raise
        offline = isinstance(error, errors.OfflineModeIsEnabled)
        reason = "HF_HUB_OFFLINE is set" if offline else f"{endpoint} cannot be reached ({error_summary(error)})"
        if (cached := _find_cached(repo, filenames, options)) is None:
            raise UserError(f"{repo} is not in the cache with {' or '.join(filenames)}, and {reason}.") from error
        console.print(f"Using {repo}/{cached[0]} from the cache: {reason}.", markup=False)
        return cached
    available = [file.rfilename for file in info.siblings or ()]
    if (name := next((n for n in filenames if n in available), None)) is None:
        hint = did_you_mean(filenames[0], [f for f in available if f.endswith(_SUFFIXES)])
        raise UserError(f"{repo} has no {' and no '.join(filenames)}{hint}")
    return name, Path(hf_hub_download(repo, name, **options))


def _verify(repo: str, name: str, path: Path) -> HubFile:
    """Compare a file with the name of its blob: the ETag, which is the SHA-256 of large files.

    The cache links to blobs if the file system supports links; otherwise only the client's own check applies.
    """
    chain = [path]
    while chain[-1].is_symlink():
        chain.append(chain[-1].parent / os.readlink(chain[-1]))
    expected = chain[1].name if len(chain) > 1 else ""
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if re.fullmatch("[0-9a-f]{64}", expected) and actual != expected:
        for link in chain:  # the link, the blob, and the target of a blob that repositories share
            link.unlink(missing_ok=True)
        raise UserError(f"{repo}/{name} is damaged and was removed: its SHA-256 is {actual}, expected {expected}.")
    return HubFile(path, actual, path.parents[name.count("/")].name)


def _error_message(error: BaseException, repo: str, revision: str | None, endpoint: str | None) -> str:
    """Return a one-line message for an error of the Hub's client."""
    host = endpoint or constants.ENDPOINT
    if isinstance(error, errors.GatedRepoError):
        return f"{repo} is gated: accept its terms at {host}/{repo} and set HF_TOKEN."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"There is no {repo} at {host}, or it is private and HF_TOKEN gives no access."
    if isinstance(error, errors.RevisionNotFoundError):
        return f'{repo} has no revision "{revision}".'
    if isinstance(error, errors.HfHubHTTPError):
        return f"{repo} cannot be downloaded: {host} returned HTTP {error.response.status_code}."
    return f"{repo} cannot be downloaded: {error_summary(error)}."
