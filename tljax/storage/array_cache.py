"""A cache of computed arrays, on disk or in memory; keys contain everything that the arrays depend on.

A cache entry on disk is a folder of raw arrays and `about.json`. It is written under another name and renamed when it
is complete, so that a partial entry is never read. One process computes an entry while others that need it wait and
then read it. When the cache exceeds its size limit, the least recently used entries are deleted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from filelock import FileLock

from tljax.config import CacheConfig

Shapes = Mapping[str, jax.ShapeDtypeStruct]
ComputeFn = Callable[[Mapping[str, np.ndarray]], None]


@dataclasses.dataclass(frozen=True, eq=False)
class CachedArrays:
    """A cache entry.

    Attributes:
      arrays: read-only arrays by name.
      seconds: time that computing them took.
      reused: whether they were in the cache already.
      storage: "disk" or "memory".
    """

    arrays: Mapping[str, np.ndarray]
    seconds: float
    reused: bool
    storage: str


# Entries in order of their last use.
_memory: dict[str, CachedArrays] = {}


class ArrayCache:
    """A cache of arrays with a size limit.

    Args:
      config: the cache section of the config: storage and size limit.
      folder: folder of the entries on disk.
    """

    def __init__(self, config: CacheConfig, folder: Path):
        self.storage = config.storage
        self.max_bytes = int(config.max_gb * 1e9)
        self.folder = folder

    def get(self, key: Mapping, shapes: Shapes, compute: ComputeFn) -> CachedArrays:
        """Return the arrays of a key, computed if they are not in the cache.

        Args:
          key: everything that the arrays depend on, as JSON.
          shapes: shapes and dtypes of the arrays, by name.
          compute: called with empty arrays of these shapes, which it fills.
        """
        name = key_digest(key)
        if self.storage == "disk":
            try:
                return self._get_from_disk(name, key, shapes, compute)
            except OSError:  # the folder cannot be created, or the disk is full: use memory instead
                pass
        if self.storage == "none":
            return _compute_in_memory(shapes, compute)
        if (entry := _memory.pop(name, None)) is None:
            entry = _compute_in_memory(shapes, compute)
            result = entry
        else:
            result = dataclasses.replace(entry, reused=True)
        _memory[name] = entry  # inserted last: the first entry is the least recently used
        while sum(map(_num_bytes, _memory.values())) > self.max_bytes and len(_memory) > 1:
            del _memory[next(iter(_memory))]
        return result

    def _get_from_disk(self, name: str, key: Mapping, shapes: Shapes, compute: ComputeFn) -> CachedArrays:
        path = self.folder / name
        if (entry := _read_entry(path, shapes)) is not None:
            return entry
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if (entry := _read_entry(path, shapes)) is not None:  # another process computed it meanwhile
                return entry
            partial = Path(f"{path}.part")
            for stale in (partial, path):  # left by a killed process, or damaged
                shutil.rmtree(stale, ignore_errors=True)
            partial.mkdir()
            try:
                arrays = {n: _create_array_file(partial / str(i), s) for i, (n, s) in enumerate(shapes.items())}
                entry = _compute(arrays, compute, "disk")
                for array in arrays.values():
                    array.flush()
                (partial / "about.json").write_text(json.dumps({"key": key, "seconds": entry.seconds}, indent=2))
                partial.replace(path)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        self._delete_oldest(keep=path)
        return entry

    def _delete_oldest(self, keep: Path) -> None:
        last_used = {p: p.stat().st_mtime for p in self.folder.iterdir() if (p / "about.json").is_file()}
        sizes = {p: sum(f.stat().st_size for f in p.iterdir() if f.suffix != ".json") for p in last_used}
        for oldest in sorted(last_used, key=last_used.__getitem__):
            if sum(sizes.values()) <= self.max_bytes:
                break
            if oldest != keep:
                # Processes that have mapped its files can read them until they unmap them.
                shutil.rmtree(oldest, ignore_errors=True)
                del sizes[oldest]


def key_digest(key: Mapping) -> str:
    """Return the name of a key's entry: 32 hex digits of its SHA-256."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


def _compute(arrays: Mapping[str, np.ndarray], compute: ComputeFn, storage: str) -> CachedArrays:
    start = time.monotonic()
    compute(arrays)
    seconds = time.monotonic() - start
    for array in arrays.values():
        array.flags.writeable = False
    return CachedArrays(arrays, seconds, reused=False, storage=storage)


def _compute_in_memory(shapes: Shapes, compute: ComputeFn) -> CachedArrays:
    return _compute({name: np.empty(s.shape, s.dtype) for name, s in shapes.items()}, compute, "memory")


def _read_entry(path: Path, shapes: Shapes) -> CachedArrays | None:
    """Return an entry on disk, or None if it is missing or incomplete; mark it as used."""
    try:
        seconds = json.loads((path / "about.json").read_text())["seconds"]
        files = {n: (path / str(i), s) for i, (n, s) in enumerate(shapes.items())}
        arrays = {n: np.memmap(file, s.dtype, "r", shape=s.shape) for n, (file, s) in files.items()}
        os.utime(path)
    except (OSError, ValueError, KeyError):
        return None
    return CachedArrays(arrays, seconds, reused=True, storage="disk")


def _create_array_file(path: Path, shape: jax.ShapeDtypeStruct) -> np.memmap:
    array = np.memmap(path, shape.dtype, "w+", shape=shape.shape)
    # Allocate the space now: on a full disk, a write to a sparse mapped file kills the process.
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, array.nbytes)
    return array


def _num_bytes(entry: CachedArrays) -> int:
    return sum(array.nbytes for array in entry.arrays.values())
