"""The compilation cache on disk."""

import os
import subprocess
import sys

PROGRAM = """
import jax, jax.numpy as jnp, pathlib
from tljax.storage.cache_dir import cache_dir, enable_compilation_cache
enable_compilation_cache()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8))).block_until_ready()
print(sum(1 for f in cache_dir("xla").rglob("*") if f.is_file()))
"""


def count_cached_files(cache, **environment):
    base = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=base | {"TLJAX_CACHE": str(cache)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(process.stdout)


def test_compilation_cache_yields_to_the_folder_set_for_jax(tmp_path):
    assert count_cached_files(tmp_path / "a") > 0
    assert count_cached_files(tmp_path / "b", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "jax")) == 0
    assert any((tmp_path / "jax").iterdir())
