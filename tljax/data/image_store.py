"""Decoding of image files by several threads, into memory or once into a memory-mapped file that later runs reuse."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from filelock import FileLock

from tljax import config as schema
from tljax.config import DataConfig
from tljax.data.dataset import ImageRows, Images
from tljax.data.progress import track
from tljax.data.sources.images import ImageFormat
from tljax.errors import UserError
from tljax.storage.cache_dir import cache_dir

Result = TypeVar("Result")

# Raised when the same files would be decoded to other pixels: stores of before are then not reused.
VERSION = 1
# Files whose headers are read at once.
BLOCK = 256


def load_images(
    names: Sequence[str], paths: Sequence[Path], image_format: ImageFormat, config: DataConfig
) -> tuple[Images, dict[str, str]]:
    """Decode image files, or read them from the store.

    Up to `config.max_memory_gb` they are decoded into memory. Beyond that they are decoded into
    `$TLJAX_CACHE/images/KEY/images.npy`, under another name until it is complete. The key is a hash of names, sizes and
    times of the files, and of the format.

    Args:
      names: of the files.
      paths: of the files.
      image_format: of the decoded images.
      config: the data section of the config.

    Returns:
      uint8 [N, side, side, C], with arbitrary rows for bad files, and the message for each bad file by name.

    Raises:
      UserError: a file is bad and `config.on_error` is "error", or the store cannot be written.
    """
    folder = cache_dir("images") / _key(names, paths, image_format)
    if (stored := _read_store(folder)) is not None:
        images, errors = stored
    else:
        shape = (len(names), image_format.side, image_format.side, _num_channels(paths, image_format))
        if np.prod(shape, dtype=np.int64) <= config.max_memory_gb * 1e9:
            images = np.empty(shape, np.uint8)
            errors = _decode(names, paths, image_format, images, config.on_error)
        else:
            images, errors = _write_store(folder, names, paths, image_format, shape, config.on_error)
    if errors and config.on_error == "error":
        raise UserError(next(iter(errors.values())))
    return images, errors


def read_all(paths: Iterable[Path], read: Callable[[Path], Result], ahead: int = 256) -> Iterator[Result | UserError]:
    """Yield what `read` returns for each file, or the error, in order; several threads decode.

    Args:
      paths: of the files.
      read: function that reads a file, or raises UserError.
      ahead: number of images that are decoded, or wait for it, before they are asked for.
    """

    def read_or_error(path: Path) -> Result | UserError:
        try:
            return read(path)
        except UserError as error:
            return error

    pool = ThreadPoolExecutor(os.cpu_count())
    pending: deque[Future[Result | UserError]] = deque()
    try:
        for path in paths:
            pending.append(pool.submit(read_or_error, path))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _decode(
    names: Sequence[str], paths: Sequence[Path], image_format: ImageFormat, out: np.ndarray, on_error: str
) -> dict[str, str]:
    """Decode all files into `out` [N, side, side, C]; return the message for each bad file by name."""
    errors = {}
    for i, image in enumerate(track(read_all(paths, image_format.read), "reading images", len(paths))):
        if isinstance(image, np.ndarray) and image.shape[-1] > out.shape[-1]:
            image = UserError(f"{paths[i]} has colors, but its header says that it is gray.")
        if isinstance(image, np.ndarray):
            out[i] = image  # a gray image is copied to all channels
        elif on_error == "error":
            raise image
        else:
            errors[names[i]] = str(image)
    return errors


def _num_channels(paths: Sequence[Path], image_format: ImageFormat) -> int:
    """Return 1 if all images are gray, else 3; reads headers, up to the first image in color."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        blocks = (paths[start : start + BLOCK] for start in range(0, len(paths), BLOCK))
        return 1 if all(gray for block in blocks for gray in pool.map(image_format.is_gray, block)) else 3


def _key(names: Sequence[str], paths: Sequence[Path], image_format: ImageFormat) -> str:
    """Return the name of the store: 32 hex digits of a SHA-256."""
    digest = hashlib.sha256(json.dumps([VERSION, schema.to_dict(image_format)]).encode())
    for name, path in zip(names, paths, strict=True):
        try:
            stat = path.stat()
            row = [name, stat.st_size, stat.st_mtime_ns]
        except OSError:
            row = [name]
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()[:32]


def _read_store(folder: Path) -> tuple[Images, dict[str, str]] | None:
    """Return the images on disk and the messages for bad files, or None if there is no complete store."""
    try:
        errors: Mapping[str, str] = json.loads((folder / "about.json").read_text())["errors"]
        images = np.load(folder / "images.npy", mmap_mode="r")
    except (OSError, ValueError, KeyError):
        return None
    return ImageRows(images, np.arange(len(images))), dict(errors)


def _write_store(
    folder: Path,
    names: Sequence[str],
    paths: Sequence[Path],
    image_format: ImageFormat,
    shape: tuple[int, ...],
    on_error: str,
) -> tuple[Images, dict[str, str]]:
    """Decode all files into a new store, and return what `_read_store` returns."""
    partial = Path(f"{folder}.part")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if (stored := _read_store(folder)) is not None:  # another process wrote it meanwhile
                return stored
            try:
                for stale in (partial, folder):  # left by a killed process, or damaged
                    shutil.rmtree(stale, ignore_errors=True)
                partial.mkdir()
                images = np.lib.format.open_memmap(partial / "images.npy", "w+", np.uint8, shape)
                # Allocate the space now: on a full disk, a write to a sparse mapped file kills the process.
                with (partial / "images.npy").open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
                errors = _decode(names, paths, image_format, images, on_error)
                images.flush()
                about = {"files": len(names), "format": schema.to_dict(image_format), "errors": errors}
                (partial / "about.json").write_text(json.dumps(about, indent=2))
                partial.replace(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        stored = _read_store(folder)
    except OSError as error:
        raise UserError(
            f"The images need {np.prod(shape, dtype=np.int64) / 1e9:.3g} GB in {folder.parent}, which failed: "
            f"{error.strerror}. Set TLJAX_CACHE to another folder, or raise data.max_memory_gb."
        ) from error
    assert stored is not None  # it was just written
    return stored
