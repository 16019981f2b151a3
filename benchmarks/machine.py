"""Limits and names of the machine: matrix products, memory traffic, peak memory, processor.

The functions that take a task return variants of steps like those of frameworks.py and import what they need.
"""

from __future__ import annotations

import os
import platform
import re
import resource
import sys
from pathlib import Path


def matmul(task):
    """Return the step of a large matrix product in the task's dtype, the measured peak."""
    import jax
    import jax.numpy as jnp

    side = 2048 if jax.default_backend() == "cpu" else 8192
    a = jnp.ones((side, side), task["dtype"])
    # Accumulates in float32: with results in bfloat16, XLA chooses a slower algorithm on CPU.
    product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
    return {"jit": lambda: (lambda: product(a, a).block_until_ready(), 2 * side**3)}


def torch_matmul(task):
    """Return the same product in PyTorch, whose libraries may use instructions that XLA does not."""
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
    """Return the step a ← a + 2 b on arrays far larger than the caches; its "FLOPs" are bytes: two reads, one write."""
    import jax
    import jax.numpy as jnp

    count = task["megabytes"] * 2**20 // 4
    arrays = {"a": jnp.ones(count), "b": jnp.ones(count)}
    add = jax.jit(lambda a, b: a + 2 * b, donate_argnums=0)  # in place: fresh pages in every step cost more

    def step():
        arrays["a"] = add(arrays["a"], arrays["b"]).block_until_ready()

    return {"jit": lambda: (step, 3 * 4 * count)}


def peak_bytes(framework: str) -> int:
    """Return the peak memory so far: of the GPU if the framework reports it, else of the process."""
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


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def processor_name() -> str:
    """Return the processor's model name."""
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match.group(1) if match else platform.processor() or platform.machine()


def machine_name(device: str, cores: int | None = None) -> str:
    """Return a name for files: `AMD EPYC` and 2 cores → `amd-epyc-2cores`."""
    text = re.sub(r"\(.*?\)|@.*|\bCPU\b|\bProcessor\b", " ", device)
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return name if cores is None else f"{name}-{cores}cores"


def memory_bytes() -> int | None:
    """Return the memory of the machine in bytes, None if it is unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
