"""Things of the user's own: an attribute of a Python file, named `path/to/FILE.py:NAME`."""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from tljax.errors import UserError, did_you_mean


def is_plugin(name: str) -> bool:
    """Whether a name means something in a file: `FILE.py:NAME`, or a file whose NAME was forgotten."""
    return name.endswith(".py") or ".py:" in name


def load_plugin(spec: str, what: str) -> Any:
    """Returns what a Python file calls `NAME`.

    A file runs once per process and version: as long as it does not change, the same spec gives the same object.

    Args:
      spec: `path/to/FILE.py:NAME`, the path relative to the current folder or absolute.
      what: the noun for messages, e.g. "objective".

    Raises:
      UserError: spec without a file or a name, no such file, a file that raises, or no such name in it.
    """
    file, _, name = spec.rpartition(":")
    if not file.endswith(".py") or not name:
        raise UserError(f'A {what} of your own is named by file and name, as in FILE.py:NAME, got "{spec}".')
    path = Path(file)
    if not path.is_file():
        raise UserError(f'{what} "{spec}": {_missing(path)}')
    module = _module(path.resolve(), path.stat().st_mtime_ns)
    if not hasattr(module, name):
        public = [n for n, value in vars(module).items() if not n.startswith("_") and not inspect.ismodule(value)]
        raise UserError(f'{path} has no {what} "{name}"{did_you_mean(name, public)}')
    return getattr(module, name)


def plugin_digest(spec: str) -> str:
    """SHA-256 of the file of `FILE.py:NAME`."""
    return hashlib.sha256(Path(spec.rpartition(":")[0]).read_bytes()).hexdigest()


def _missing(path: Path) -> str:
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}."
    return f"there is no file {path}{did_you_mean(path.name, sorted(p.name for p in path.parent.glob('*.py')))}"


@functools.cache
def _module(path: Path, mtime_ns: int) -> ModuleType:
    """Runs a file; a later `mtime_ns` runs it anew."""
    module = ModuleType(f"tljax_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # Dataclasses look up their annotations there.
    try:
        # Not by importlib: it keeps byte code beside the file, and takes it for fresh by whole seconds.
        exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    except Exception as error:
        del sys.modules[module.__name__]
        raise UserError(_sentence(path, error)) from error
    return module


def _sentence(path: Path, error: Exception) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines, error = [error.lineno], SyntaxError(error.msg)
    where = f"{path}, line {lines[-1]}" if lines else str(path)
    text = " ".join(str(error).split())
    return f"{where}: {text}" if isinstance(error, UserError) else f"{where}: {type(error).__name__}: {text}"
