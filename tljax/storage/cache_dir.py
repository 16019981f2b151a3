"""Where downloads and compiled programs are kept: `$TLJAX_CACHE`, else `~/.cache/tljax`."""

from __future__ import annotations

import os
import platform
import zlib
from pathlib import Path

import jax


def cache_dir(name: str) -> Path:
    """A folder of the cache, which may not exist yet."""
    return Path(os.environ.get("TLJAX_CACHE") or Path.home() / ".cache" / "tljax") / name


def enable_compilation_cache() -> None:
    """Keeps what XLA compiles on disk, so that a program is compiled once on a machine.

    `JAX_COMPILATION_CACHE_DIR`, when set, says where instead. A home may be shared by machines: programs for one
    processor do not run on another, so each kind has a folder of its own.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    jax.config.update("jax_compilation_cache_dir", str(cache_dir("xla") / f"{platform.machine()}-{_processor():08x}"))
    jax.config.update("jax_compilation_cache_max_size", 4 * 2**30)
    # Small programs add up: the first second of a run is full of them.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _processor() -> int:
    """A number that machines with the same instructions share."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return zlib.crc32(platform.processor().encode())
    known = [line for line in lines if line.startswith(("flags", "Features", "model name"))]
    return zlib.crc32("\n".join(sorted(set(known))).encode())
