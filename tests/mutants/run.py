"""Apply the mutants of `table.py` to copies of the project and report which test detects each.

python -m tests.mutants.run                all mutants, two at a time
python -m tests.mutants.run 'cache_*'      mutants whose name matches a pattern
"""

from __future__ import annotations

import argparse
import collections
import fnmatch
import multiprocessing
import multiprocessing.pool
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import tests.conftest  # noqa: F401 - sets the environment in which JAX is imported
from tests.mutants.table import MUTANTS, Mutant

ROOT = Path(__file__).parent.parent.parent
COPIED = ("tljax", "tests", "configs", "docs", "examples", "experiments", "run.py", "pyproject.toml", "README.md")
# Modules imported once, in the process of which each test process is a fork.
PRELOADED = (
    *("pytest", "hypothesis", "numpy", "jax", "jax.numpy", "flax.nnx", "optax", "orbax.checkpoint", "grain.python"),
    *("sklearn.metrics", "PIL.Image", "rich.console", "ml_collections", "safetensors.numpy", "h5py"),
)
# Time limit of the tests of a mutant.
TIMEOUT_SECONDS = 240


class Outcome(NamedTuple):
    """Result of testing a mutant.

    Attributes:
      caught_by: name of the first failed test, or None if all passed.
      error: why the tests could not run, or an empty string.
      seconds: run time.
    """

    caught_by: str | None
    error: str
    seconds: float


def run(mutant: Mutant) -> Outcome:
    """Run the tests of a mutant on a mutated copy of the project, until one fails."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tljax-mutant-") as folder:
        copy = copy_project(Path(folder))
        apply(mutant, copy)
        failed, error = run_tests(copy, mutant.tests)
    return Outcome(failed[0] if failed else None, error, time.monotonic() - start)


def copy_project(folder: Path) -> Path:
    """Copy the files that tests need, including byte code, into a folder and return it."""
    for name in COPIED:
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, folder / name)
    return folder


def apply(mutant: Mutant, root: Path) -> None:
    """Apply a mutant to a copy of the project.

    Raises:
      ValueError: the file does not contain the text exactly once.
    """
    path = root / mutant.file
    text = path.read_text()
    if text.count(mutant.line) != 1:
        raise ValueError(f"{mutant.name}: {mutant.file} contains {mutant.line!r} {text.count(mutant.line)} times")
    path.write_text(text.replace(mutant.line, mutant.wrong))


def run_tests(root: Path, tests: Sequence[str], stop_at_first: bool = True) -> tuple[list[str], str]:
    """Run tests of a copy of the project in a subprocess.

    Returns:
      Names of the failed tests, and why the tests could not run, or an empty string.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run_pytest, args=(str(root), tuple(tests), stop_at_first, sender))
    process.start()
    sender.close()
    try:
        code, failed, error = receiver.recv() if receiver.poll(TIMEOUT_SECONDS) else (None, [], "")
    except EOFError:  # the process died
        code, failed, error = -1, [], "the process died"
    process.kill()
    process.join()
    if code is None:
        return [], f"no result in {TIMEOUT_SECONDS} s"
    if code not in (0, 1) and not error:
        error = f"pytest exited with code {code}"
    return failed, error


def _run_pytest(root: str, tests: tuple[str, ...], stop_at_first: bool, sender) -> None:
    import pytest

    class Recorder:
        failed: list[str] = []  # noqa: RUF012 - there is one instance
        error = ""

        def pytest_runtest_logreport(self, report):
            if report.failed and report.nodeid not in self.failed:
                self.failed.append(report.nodeid)

        def pytest_collectreport(self, report):
            if report.failed:
                self.error = str(report.longrepr)[-500:]

    # Import the modules of the copy, not those of this checkout.
    for name in [n for n in sys.modules if n.partition(".")[0] in ("tests", "tljax")]:
        del sys.modules[name]
    sys.path[:] = [root, *(path for path in sys.path if Path(path or ".").resolve() != ROOT)]
    os.chdir(root)
    os.environ |= {"TLJAX_CACHE": f"{root}/cache", "PYTHONPATH": root}
    with open("output.txt", "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    recorder = Recorder()
    options = ["-o", "addopts=", "-m", "not deep", "-q", "-p", "no:cacheprovider", "--tb=no"]
    code = pytest.main([*options, *(["-x"] if stop_at_first else []), *tests], plugins=[recorder])
    sender.send((int(code), recorder.failed, recorder.error))


def main(argv: Sequence[str]) -> int:
    """Test the selected mutants; return 0 if all are detected."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants.run", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=["*"], help="patterns of names, such as 'cache_*'")
    parser.add_argument("-j", "--jobs", type=int, default=2, help="number of mutants at a time; default: %(default)s")
    args = parser.parse_args(argv)
    selected = [m for m in MUTANTS if any(fnmatch.fnmatchcase(m.name, pattern) for pattern in args.names)]
    if not selected:
        parser.error(f"there is no mutant {' '.join(args.names)}")
    start = time.monotonic()
    outcomes = {}
    with multiprocessing.pool.ThreadPool(args.jobs) as pool:
        for mutant, outcome in pool.imap_unordered(lambda m: (m, run(m)), selected):
            outcomes[mutant.name] = outcome
            result = outcome.error or outcome.caught_by or f"SURVIVED: {mutant.promise}"
            print(f"[{len(outcomes)}/{len(selected)}] {mutant.name}  {outcome.seconds:.1f} s  {result}", flush=True)
    caught = [o.caught_by for o in outcomes.values() if o.caught_by]
    with tempfile.TemporaryDirectory(prefix="tljax-mutant-") as folder:
        failed, error = run_tests(copy_project(Path(folder)), sorted(set(caught)), stop_at_first=False)
    for name in failed:
        print(f"{name} also fails without a mutant.")
    print("\nmutants caught, by test file:")
    for file, count in collections.Counter(name.partition("::")[0] for name in caught).most_common():
        print(f"{count:4} {file}")
    print(f"{len(caught)} of {len(selected)} caught, {time.monotonic() - start:.0f} s")
    return int(len(caught) < len(selected) or bool(failed or error))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
