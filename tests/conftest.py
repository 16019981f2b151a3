"""Fixtures that several tests share."""

import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CACHE = Path(os.environ.get("TLJAX_TEST_CACHE", ROOT / ".cache" / "xla"))

# Small networks compile again and again over a suite: keep what was compiled, here and in subprocesses.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# A test runs a program a few times: on a processor, LLVM's optimisations take longer than they save.
if not shutil.which("nvidia-smi"):
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# Features of one session are of no use to another.
os.environ.setdefault("TLJAX_CACHE", tempfile.mkdtemp(prefix="tljax-tests-"))
# Golden values are compared to seven digits: on a GPU, float32 must not be TF32.
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")


class Silent:
    """A log that nobody reads."""

    def __getattr__(self, name):
        return lambda *args: None


@pytest.fixture
def console():
    """A console that keeps what it is told."""
    from rich.console import Console

    return Console(record=True, file=io.StringIO(), width=200)


@pytest.fixture
def tiny(tmp_path):
    """A config that trains in seconds: two phases on three digits, with BatchNorm, dropout and augmentation."""
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
    c.cache.storage = "none"  # fewer programs to compile; tests/train/test_feature_cache.py is about the others
    return c


@pytest.fixture
def run_command(tmp_path):
    """Runs run.py in a process of its own and returns the finished process."""

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
