"""Compiled programs are kept on disk, where nobody has said otherwise."""

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


def files_kept(cache, **environment):
    base = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=base | {"TLJAX_CACHE": str(cache)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def test_programs_are_kept_unless_jax_has_a_folder_of_its_own(tmp_path):
    first = files_kept(tmp_path / "a")
    assert first > 0
    assert files_kept(tmp_path / "b", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own")) == 0
    assert any((tmp_path / "own").iterdir())
