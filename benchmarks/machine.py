"""What the machine can do: matrix products, memory traffic, and the names of its parts.

The functions that take a task are workers' functions like those of frameworks.py; they import what they need.
"""

from __future__ import annotations

import os
import platform
import re
import resource
import sys
from pathlib import Path


def matmul(task):
    """The measured peak: a product of large matrices, in the precision that the networks get."""
    import jax
    import jax.numpy as jnp

    side = 2048 if jax.default_backend() == "cpu" else 8192
    a = jnp.ones((side, side), task["dtype"])
    # Sums in float32: with results in bfloat16, XLA takes a slower way on processors.
    product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
    return {"jit": lambda: (lambda: product(a, a).block_until_ready(), 2 * side**3)}


def torch_matmul(task):
    """The same product by PyTorch, whose libraries know instructions that XLA's may not use."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
    side = 2048 if device == "cpu" else 8192
    a = torch.ones(side, side, dtype=getattr(torch, task["dtype"]), device=device)
    out = torch.empty_like(a)

    def step():
        torch.mm(a, a, out=out)
        if device == "cuda":
            torch.cuda.synchronize()

    return {"mm": lambda: (step, 2 * side**3)}


def triad(task):
    """Memory traffic: a + 2 b into a, of arrays far larger than caches. It counts bytes, two reads and a write."""
    import jax
    import jax.numpy as jnp

    count = task["megabytes"] * 2**20 // 4
    place = {"a": jnp.ones(count), "b": jnp.ones(count)}
    add = jax.jit(lambda a, b: a + 2 * b, donate_argnums=0)  # in place: pages that are new each time cost more

    def step():
        place["a"] = add(place["a"], place["b"]).block_until_ready()

    return {"jit": lambda: (step, 3 * 4 * count)}


def peak_bytes(framework: str) -> int:
    """The most memory that was in use so far: of the GPU as the framework counts it, else of the process."""
    if framework == "jax":
        import jax

        stats = jax.local_devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in stats:
            return stats["peak_bytes_in_use"]
    if framework == "torch":
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
    if framework == "tensorflow":
        import tensorflow as tf

        if tf.config.list_physical_devices("GPU"):
            return tf.config.experimental.get_memory_info("GPU:0")["peak"]
    # Kilobytes, but bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def processor() -> str:
    """As the machine calls it."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1) if found else platform.processor() or platform.machine()


def name_of(part: str, count: int | None = None) -> str:
    """A name for files: `AMD EPYC` and 2 cores → `amd-epyc-2cores`."""
    plain = re.sub(r"\(.*?\)|@.*|\bCPU\b|\bProcessor\b", " ", part)
    name = re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")
    return name if count is None else f"{name}-{count}cores"


def memory_bytes() -> int | None:
    """Of the whole machine."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
