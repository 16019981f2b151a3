"""Arrays that cost time to compute, kept under a key that says everything they depend on.

On disk an entry is a folder of raw arrays with `about.json`, which is written last, in a folder that is then renamed:
what is half written is never read. One process fills an entry while others that want it wait, and read it. Beyond the
budget, what was not used for longest is deleted.
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
Fill = Callable[[Mapping[str, np.ndarray]], None]


@dataclasses.dataclass(frozen=True, eq=False)
class CachedArrays:
    """Kept arrays.

    Attributes:
      arrays: by name, read-only.
      seconds: that it took to compute them.
      reused: whether they were there before.
      where: "disk" or "memory".
    """

    arrays: dict[str, np.ndarray]
    seconds: float
    reused: bool
    storage: str


_memory: dict[str, CachedArrays] = {}


class ArrayCache:
    """Where arrays are kept.

    Args:
      config: on disk, in memory, or nowhere, and how much.
      folder: on disk.
    """

    def __init__(self, config: CacheConfig, folder: Path):
        self.where, self.limit, self.folder = config.storage, int(config.max_gb * 1e9), folder

    def get(self, key: Mapping, shapes: Shapes, fill: Fill) -> CachedArrays:
        """The arrays of a key, computed if they are not there.

        Args:
          key: JSON of all that the arrays depend on.
          shapes: of the arrays, by name.
          fill: writes them into arrays of these shapes.
        """
        name = key_digest(key)
        if self.where == "disk":
            try:
                return self._on_disk(name, key, shapes, fill)
            except OSError:  # no such folder can be made, or the disk is full: memory may still do
                pass
        if self.where == "none":
            return _computed({n: np.empty(s.shape, s.dtype) for n, s in shapes.items()}, fill, "memory")
        if (entry := _memory.pop(name, None)) is None:
            entry = _computed({n: np.empty(s.shape, s.dtype) for n, s in shapes.items()}, fill, "memory")
            found = entry
        else:
            found = dataclasses.replace(entry, reused=True)
        _memory[name] = entry  # at the end: the first is the one not used for longest
        while sum(map(_bytes, _memory.values())) > self.limit and len(_memory) > 1:
            del _memory[next(iter(_memory))]
        return found

    def _on_disk(self, name: str, key: Mapping, shapes: Shapes, fill: Fill) -> CachedArrays:
        place = self.folder / name
        if (entry := _read(place, shapes)) is not None:
            return entry
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{place}.lock"):
            if (entry := _read(place, shapes)) is not None:  # another process was first
                return entry
            part = Path(f"{place}.part")
            for old in (part, place):  # of a process that died, or damaged
                shutil.rmtree(old, ignore_errors=True)
            part.mkdir()
            try:
                arrays = {n: _new_file(part / str(i), s) for i, (n, s) in enumerate(shapes.items())}
                entry = _computed(arrays, fill, "disk")
                for array in arrays.values():
                    array.flush()
                (part / "about.json").write_text(json.dumps({"key": key, "seconds": entry.seconds}, indent=2))
                part.replace(place)
            finally:
                shutil.rmtree(part, ignore_errors=True)
        self._delete_oldest(keep=place)
        return entry

    def _delete_oldest(self, keep: Path) -> None:
        entries = {p: p.stat().st_mtime for p in self.folder.iterdir() if (p / "about.json").is_file()}
        sizes = {p: sum(f.stat().st_size for f in p.iterdir() if f.suffix != ".json") for p in entries}
        for oldest in sorted(entries, key=entries.get):
            if sum(sizes.values()) <= self.limit:
                break
            if oldest != keep:
                # A process that reads it keeps its pages until it lets go.
                shutil.rmtree(oldest, ignore_errors=True)
                del sizes[oldest]


def key_digest(key: Mapping) -> str:
    """The name of a key's entry."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


def _computed(arrays: dict[str, np.ndarray], fill: Fill, where: str) -> CachedArrays:
    start = time.monotonic()
    fill(arrays)
    seconds = time.monotonic() - start
    for array in arrays.values():
        array.flags.writeable = False
    return CachedArrays(arrays, seconds, reused=False, storage=where)


def _read(place: Path, shapes: Shapes) -> CachedArrays | None:
    """An entry on disk; None where it is not there, or not whole."""
    try:
        seconds = json.loads((place / "about.json").read_text())["seconds"]
        files = {n: (place / str(i), s) for i, (n, s) in enumerate(shapes.items())}
        arrays = {n: np.memmap(path, s.dtype, "r", shape=s.shape) for n, (path, s) in files.items()}
        os.utime(place)
    except (OSError, ValueError, KeyError):
        return None
    return CachedArrays(arrays, seconds, reused=True, storage="disk")


def _new_file(path: Path, shape: jax.ShapeDtypeStruct) -> np.memmap:
    array = np.memmap(path, shape.dtype, "w+", shape=shape.shape)
    # Space is taken now: where it is missing, a write into a mapped file kills the process.
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, array.nbytes)
    return array


def _bytes(entry: CachedArrays) -> int:
    return sum(array.nbytes for array in entry.arrays.values())
