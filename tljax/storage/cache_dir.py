"""The folder of downloads, cached features and compiled programs: `$TLJAX_CACHE`, else `~/.cache/tljax`."""

from __future__ import annotations

import os
import platform
import zlib
from pathlib import Path

import jax


def cache_dir(name: str) -> Path:
    """Return a subfolder of the cache, which may not exist yet."""
    return Path(os.environ.get("TLJAX_CACHE") or Path.home() / ".cache" / "tljax") / name


def enable_compilation_cache() -> None:
    """Store what XLA compiles on disk, so that each program is compiled once per machine.

    `JAX_COMPILATION_CACHE_DIR` takes precedence if it is set. Otherwise each type of processor has its own subfolder:
    machines may share a home directory, and programs for one processor do not run on another.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    jax.config.update("jax_compilation_cache_dir", str(cache_dir("xla") / f"{platform.machine()}-{_cpu_digest():08x}"))
    jax.config.update("jax_compilation_cache_max_size", 4 * 2**30)
    # A run compiles many small programs in its first second.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _cpu_digest() -> int:
    """Return a checksum of the processor's model and instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return zlib.crc32(platform.processor().encode())
    features = {line for line in lines if line.startswith(("flags", "Features", "model name"))}
    return zlib.crc32("\n".join(sorted(features)).encode())
