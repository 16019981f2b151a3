"""Download a file from a URL: interrupted downloads resume, digests are checked, and files appear atomically."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from tljax.errors import UserError
from tljax.storage.cache_dir import cache_dir


def from_url(
    url: str,
    *,
    sha256: str | None = None,
    prefix: str | None = None,
    md5: str | None = None,
    directory: Path | None = None,
    filename: str | None = None,
    console: Console | None = None,
    retries: int = 3,
    wait: float = 1.0,
) -> Path:
    """Download a file, unless it exists with the right digest; then the network is not used.

    At least one digest is required, and each given one must match.

    Args:
      url: address of the file.
      sha256: all 64 hex digits.
      prefix: first digits of the SHA-256, which torchvision has in its file names.
      md5: MD5, which Keras publishes.
      directory: destination folder; `weights` in the cache by default.
      filename: name in that folder; the URL's by default.
      console: console for the progress bar.
      retries: number of retries after a failure of the server or the connection.
      wait: seconds before the first retry, doubled for each further one.

    Returns:
      The path of the file.

    Raises:
      UserError: the download failed, or the file has another digest.
    """
    digests = [("sha256", sha256), ("sha256", prefix), ("md5", md5)]
    if not any(expected for _, expected in digests):
        raise ValueError(f"{url}: a digest is required.")
    directory = Path(directory or cache_dir("weights"))
    target = directory / (filename or Path(httpx2.URL(url).path).name)
    console = console or Console()
    try:
        if target.is_file() and not _digest_mismatch(target, digests):
            return target
        directory.mkdir(parents=True, exist_ok=True)
        file_lock = FileLock(directory / f".{target.name}.lock")
        try:
            lock = file_lock.acquire(timeout=0)
        except Timeout:
            console.print(f"Waiting for another process that downloads {target.name}.")
            lock = file_lock.acquire()
        with lock:
            # The process that held the lock before may have downloaded the file.
            if not target.is_file() or _digest_mismatch(target, digests):
                part = directory / f"{target.name}.part"
                _fetch(url, part, console, retries, wait)
                if mismatch := _digest_mismatch(part, digests):
                    _discard(part)
                    raise UserError(f"{url} is not the expected file: its {mismatch}.")
                os.replace(part, target)
                _discard(part)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error_summary(error)}.") from error
    return target


def error_summary(error: BaseException) -> str:
    """Return the first sentence of an error's message without its period, to be part of another message."""
    return re.split(r"\.\s|\n", str(error).strip())[0].rstrip(".") or type(error).__name__


def _digest_mismatch(path: Path, digests: list[tuple[str, str | None]]) -> str | None:
    """Describe the first digest that does not match; None if all do.

    Args:
      path: the file.
      digests: (algorithm, expected first digits or None) pairs.
    """
    for algorithm, expected in digests:
        if expected:
            with path.open("rb") as file:
                actual = hashlib.file_digest(file, algorithm).hexdigest()
            if not actual.startswith(expected.lower()):
                label = {"sha256": "SHA-256", "md5": "MD5"}[algorithm]
                return f"{label} is {actual}, expected {expected}{'' if len(expected) == len(actual) else '...'}"
    return None


def _fetch(url: str, part: Path, console: Console, retries: int, wait: float) -> None:
    """Download to `part`, resuming after failures that may be temporary."""
    columns = TextColumn("{task.description}"), BarColumn(bar_width=24), DownloadColumn(), TimeRemainingColumn()
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with progress as bar, httpx2.Client(follow_redirects=True, timeout=20) as client:
        task = bar.add_task(part.stem, total=None)
        for attempt in range(retries + 1):
            try:
                return _request(client, url, part, lambda done, total: bar.update(task, completed=done, total=total))
            except httpx2.HTTPStatusError as error:
                failure = f"the server returned HTTP {error.response.status_code}"
                if error.response.status_code < 500 and error.response.status_code not in (408, 429):
                    break
            except httpx2.RequestError as error:
                failure = error_summary(error)
            if attempt < retries:
                time.sleep(wait * 2**attempt)
    raise UserError(f"{url} cannot be downloaded: {failure}.")


def _request(client: httpx2.Client, url: str, part: Path, report: Callable[[int, int | None], None]) -> None:
    """Send one request, and resume `part` only if the server has the same file and sends exactly the missing range.

    Args:
      client: HTTP client.
      url: address of the file.
      part: the incomplete file; its ETag is stored beside it.
      report: called with the number of bytes so far, and in total if known.
    """
    etag_file = _etag_file(part)
    etag = etag_file.read_text() if etag_file.is_file() else ""
    start = part.stat().st_size if etag and part.is_file() else 0
    headers = {"Accept-Encoding": "identity"}  # digests and ranges apply to the file, not to its compressed form
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": etag}
    with client.stream("GET", url, headers=headers) as response:
        resumed = response.status_code == 206
        content_range = response.headers.get("Content-Range", "")
        is_rest = content_range.startswith(f"bytes {start}-") and response.headers.get("ETag") == etag
        if response.status_code == 416 or (resumed and not is_rest):
            _discard(part)  # the next attempt starts at zero
            raise httpx2.RemoteProtocolError("the server does not send the requested range")
        response.raise_for_status()
        with part.open("ab" if resumed else "wb") as file:
            if not resumed:
                # Written after the file is emptied, so the ETag belongs to its content even if the process dies here.
                # A weak ETag does not promise equal bytes, so it is treated as none.
                etag = response.headers.get("ETag", "")
                start = 0
                etag_file.write_text("" if etag.startswith("W/") else etag)
            length = response.headers.get("Content-Length")
            for chunk in response.iter_raw():
                file.write(chunk)
                report(file.tell(), start + int(length) if length else None)


def _etag_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


def _discard(part: Path) -> None:
    """Delete an incomplete file and its ETag."""
    part.unlink(missing_ok=True)
    _etag_file(part).unlink(missing_ok=True)
