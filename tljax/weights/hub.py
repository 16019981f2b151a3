"""One file from the Hugging Face Hub, by its own client and in its own cache, checked against its digest."""

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
from tljax.weights.download import reason

NAMES = ("model.safetensors", "pytorch_model.bin")
_WEIGHTS = (".safetensors", ".bin", ".pth", ".pt", ".h5")


@dataclasses.dataclass(frozen=True)
class HubFile:
    """A file that is on disk now.

    Attributes:
      path: where it is.
      sha256: of its content.
      revision: the commit that it belongs to.
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
    """Downloads a file of a repository, unless the cache has it.

    A commit that is in the cache needs no network. A branch is looked up, and taken from the cache, which is said, when
    the Hub cannot be reached.

    Args:
      repo: "owner/name".
      filename: in the repository; `model.safetensors`, else `pytorch_model.bin` by default.
      revision: branch, tag or commit; "main" by default.
      console: for what there is to say.
      endpoint: the Hub's address; `HF_ENDPOINT` by default.
      cache_dir: `HF_HUB_CACHE` by default.

    Raises:
      UserError: it cannot be had, or it is damaged.
    """
    options = {"revision": revision, "endpoint": endpoint, "cache_dir": cache_dir}
    names = (filename,) if filename else NAMES
    try:
        pinned = re.fullmatch("[0-9a-f]{40}", revision or "")
        found = _cached(repo, names[:1], options) if pinned else None
        return _checked(repo, *(found or _ask(repo, names, options, console or Console())))
    except errors.LocalEntryNotFoundError as error:  # the Hub was there a moment ago
        raise UserError(_sentence(error.__cause__ or error, repo, revision, endpoint)) from error
    except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:  # RuntimeError comes from the Xet client
        raise UserError(_sentence(error, repo, revision, endpoint)) from error


def _cached(repo: str, names: tuple[str, ...], options: dict) -> tuple[str, Path] | None:
    for name in names:
        try:
            return name, Path(hf_hub_download(repo, name, local_files_only=True, **options))
        except errors.LocalEntryNotFoundError:
            continue
    return None


def _ask(repo: str, names: tuple[str, ...], options: dict, console: Console) -> tuple[str, Path]:
    """Asks for the list of files, which also finds out at once, before any of the client's retries, who is there."""
    endpoint = options["endpoint"] or constants.ENDPOINT
    try:
        info = HfApi(endpoint=endpoint).model_info(repo, revision=options["revision"], timeout=10)
    except (httpx2.RequestError, errors.OfflineModeIsEnabled, errors.HfHubHTTPError) as error:
        if isinstance(error, errors.HfHubHTTPError) and error.response.status_code < 500:
            raise
        offline = isinstance(error, errors.OfflineModeIsEnabled)
        why = "HF_HUB_OFFLINE is set" if offline else f"{endpoint} cannot be reached ({reason(error)})"
        if (found := _cached(repo, names, options)) is None:
            raise UserError(f"{repo} is not in the cache with {' or '.join(names)}, and {why}.") from error
        console.print(f"{repo}/{found[0]} comes from the cache: {why}.", markup=False)
        return found
    files = [file.rfilename for file in info.siblings or ()]
    if (name := next((n for n in names if n in files), None)) is None:
        hint = did_you_mean(names[0], [f for f in files if f.endswith(_WEIGHTS)])
        raise UserError(f"{repo} has no {' and no '.join(names)}{hint}")
    return name, Path(hf_hub_download(repo, name, **options))


def _checked(repo: str, name: str, path: Path) -> HubFile:
    """Compares the file with its blob's name: the ETag, which for large files is the SHA-256.

    The cache has links to blobs wherever the file system has links; elsewhere the client's own check must do.
    """
    chain = [path]
    while chain[-1].is_symlink():
        chain.append(chain[-1].parent / os.readlink(chain[-1]))
    expected = chain[1].name if len(chain) > 1 else ""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if re.fullmatch("[0-9a-f]{64}", expected) and found != expected:
        for link in chain:  # the link, the blob, and what a blob shared between repositories links to
            link.unlink(missing_ok=True)
        raise UserError(f"{repo}/{name} is damaged and was removed: its SHA-256 is {found}, expected {expected}.")
    return HubFile(path, found, path.parents[name.count("/")].name)


def _sentence(error: BaseException, repo: str, revision: str | None, endpoint: str | None) -> str:
    host = endpoint or constants.ENDPOINT
    if isinstance(error, errors.GatedRepoError):
        return f"{repo} is gated: accept its terms at {host}/{repo} and set HF_TOKEN."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"There is no {repo} at {host}, or it is private and HF_TOKEN does not open it."
    if isinstance(error, errors.RevisionNotFoundError):
        return f'{repo} has no revision "{revision}".'
    if isinstance(error, errors.HfHubHTTPError):
        return f"{repo} cannot be downloaded: {host} answers {error.response.status_code}."
    return f"{repo} cannot be downloaded: {reason(error)}."
