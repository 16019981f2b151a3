"""One file from a URL: resumed where it stopped, checked against a digest, and never half there."""

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
    """Downloads a file, unless it is there and has the digest: then nothing goes over the network.

    Args:
      url: where it is.
      sha256: all 64 hex digits.
      prefix: the first digits of the SHA-256, which torchvision has in its file names.
      md5: as Keras publishes it. One of the three must be known, and each that is given must match.
      directory: where it goes; `weights` in the cache by default.
      filename: its name there; the URL's by default.
      console: for the bar.
      retries: how often to try again when the server or the connection fails.
      wait: seconds before the first of them; it doubles each time.

    Raises:
      UserError: it cannot be had, or it is not the file that was meant.
    """
    digests = [("sha256", sha256), ("sha256", prefix), ("md5", md5)]
    if not any(expected for _, expected in digests):
        raise ValueError(f"{url}: a digest is needed.")
    directory = Path(directory or cache_dir("weights"))
    target = directory / (filename or Path(httpx2.URL(url).path).name)
    console = console or Console()
    try:
        if target.is_file() and not _mismatch(target, digests):
            return target
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / f".{target.name}.lock")
        try:
            held = lock.acquire(timeout=0)
        except Timeout:
            console.print(f"Waiting for another process that downloads {target.name}.")
            held = lock.acquire()
        with held:
            if not target.is_file() or _mismatch(target, digests):  # who held the lock may have brought it
                part = directory / f"{target.name}.part"
                _fetch(url, part, console, retries, wait)
                if wrong := _mismatch(part, digests):
                    _discard(part)
                    raise UserError(f"{url} is not the file that was meant: its {wrong}.")
                os.replace(part, target)
                _discard(part)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {reason(error)}.") from error
    return target


def reason(error: Exception) -> str:
    """The first sentence of what an error says, to be part of another."""
    return re.split(r"\.\s|\n", str(error).strip())[0].rstrip(".") or type(error).__name__


def _mismatch(path: Path, digests: list[tuple[str, str | None]]) -> str | None:
    """Says which digest is not as expected; None when all are. A digest may be given by its first digits."""
    for algorithm, expected in digests:
        if expected:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, algorithm).hexdigest()
            if not found.startswith(expected.lower()):
                name = {"sha256": "SHA-256", "md5": "MD5"}[algorithm]
                return f"{name} is {found}, expected {expected}{'' if len(expected) == len(found) else '...'}"
    return None


def _fetch(url: str, part: Path, console: Console, retries: int, wait: float) -> None:
    """Fills `part`, trying again from where it stopped when that may help."""
    columns = TextColumn("{task.description}"), BarColumn(bar_width=24), DownloadColumn(), TimeRemainingColumn()
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with progress as bar, httpx2.Client(follow_redirects=True, timeout=20) as client:
        task = bar.add_task(part.stem, total=None)
        for attempt in range(retries + 1):
            try:
                return _request(client, url, part, lambda done, total: bar.update(task, completed=done, total=total))
            except httpx2.HTTPStatusError as error:
                failure = f"the server answers {error.response.status_code}"
                if error.response.status_code < 500 and error.response.status_code not in (408, 429):
                    break
            except httpx2.RequestError as error:
                failure = reason(error)
            if attempt < retries:
                time.sleep(wait * 2**attempt)
    raise UserError(f"{url} cannot be downloaded: {failure}.")


def _request(client: httpx2.Client, url: str, part: Path, report: Callable[[int, int | None], None]) -> None:
    """One request. What is there is kept only if the server still has the same file and sends just the rest of it."""
    mark = _mark(part)
    etag = mark.read_text() if mark.is_file() else ""
    start = part.stat().st_size if etag and part.is_file() else 0
    headers = {"Accept-Encoding": "identity"}  # digests and ranges are those of the file, not of its compressed form
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": etag}
    with client.stream("GET", url, headers=headers) as response:
        resumed, answered = response.status_code == 206, response.headers
        the_rest = answered.get("Content-Range", "").startswith(f"bytes {start}-") and answered.get("ETag") == etag
        if response.status_code == 416 or (resumed and not the_rest):
            _discard(part)  # the next attempt starts at zero
            raise httpx2.RemoteProtocolError("the server does not send the range that was asked for")
        response.raise_for_status()
        with part.open("ab" if resumed else "wb") as file:
            if not resumed:
                # Written after the file was emptied: whenever the process dies, the mark belongs to what is there.
                # A weak ETag promises no equality of bytes, and is as good as none.
                etag, start = answered.get("ETag", ""), 0
                mark.write_text("" if etag.startswith("W/") else etag)
            length = answered.get("Content-Length")
            for chunk in response.iter_raw():
                file.write(chunk)
                report(file.tell(), start + int(length) if length else None)


def _mark(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _mark(part).unlink(missing_ok=True)
