"""The package as a whole: its version and its import."""

import re
import subprocess
import sys
import tomllib

import tljax
from tests.conftest import ROOT


def test_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "tljax.__version__"}
    assert re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.M)[1] == tljax.__version__


def test_import_is_light():
    code = "import sys, tljax, tljax.config; print('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "False\n"


def test_benchmark_modules_import():
    # run.py imports every item, and these the scripts that need no other framework.
    process = subprocess.run(
        [sys.executable, "run.py", "--help"], cwd=ROOT / "benchmarks", capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert "--only" in process.stdout
