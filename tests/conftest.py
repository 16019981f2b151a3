"""Fixtures shared by all tests."""

import atexit
import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest


def _remove_in_process(pid: int, folder: str) -> None:
    """Remove a folder at the end of the process that created it, but not at the end of its forks."""
    if os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)


ROOT = Path(__file__).parent.parent
CACHE = Path(os.environ.get("TLJAX_TEST_CACHE", ROOT / ".cache" / "xla"))

# Tests compile the same small networks repeatedly: use a persistent compilation cache, also in subprocesses.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Tests run each program only a few times: on a CPU, LLVM's optimizations take longer than they save.
if not shutil.which("nvidia-smi"):
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# Cached features of one test session are of no use to another.
if "TLJAX_CACHE" not in os.environ:
    os.environ["TLJAX_CACHE"] = tempfile.mkdtemp(prefix="tljax-tests-")
    atexit.register(_remove_in_process, os.getpid(), os.environ["TLJAX_CACHE"])
# Golden values are compared to seven digits, for which TF32 on a GPU is not precise enough.
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")


@pytest.fixture
def console():
    """Return a console that records its output."""
    from rich.console import Console

    return Console(record=True, file=io.StringIO(), width=200)


@pytest.fixture
def tiny(tmp_path):
    """Return a config that trains in seconds: two phases on three digits, with BatchNorm, dropout and augmentation."""
    from tljax import config

    c = config.default()
    c.workdir = str(tmp_path / "run")
    c.data.classes = (1, 2, 3)
    c.data.labels_per_class = 12
    c.model.dropout = 0.2
    c.strategy.name = "custom"
    c.strategy.phases = (
        config.Phase("head", (("head/.*", 1.0), (".*", 0.0))),
        config.Phase("top", (("stage3/.*", 0.5), ("head/.*", 1.0), (".*", 0.0)), optim={"name": "nesterov"}),
    )
    c.augment.crop_padding = 1
    c.optim.lr = 0.01
    c.train.batch_size = 8
    c.train.epochs = 4
    c.report.figures = False
    c.report.tensorboard = False
    c.cache.storage = "none"  # fewer programs to compile; tests/features/test_feature_cache.py tests the others
    return c


@pytest.fixture
def run_command(tmp_path):
    """Return a function that runs run.py in a subprocess and returns the finished process."""

    def run(*args, **environment):
        return subprocess.run(
            [sys.executable, str(ROOT / "run.py"), *map(str, args)],
            cwd=ROOT,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run
