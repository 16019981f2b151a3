"""Plugins: objects loaded from a Python file by a name of the form `path/to/FILE.py:NAME`."""

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
    """Return whether `name` refers to a Python file: `FILE.py:NAME`, or `FILE.py` with the NAME left out."""
    return name.endswith(".py") or ".py:" in name


def load_plugin(spec: str, kind: str) -> Any:
    """Load the attribute NAME of a Python file.

    The file is executed once per process and version: until it changes, the same spec returns the same object.

    Args:
      spec: `path/to/FILE.py:NAME`, the path relative to the current folder or absolute.
      kind: kind of object for error messages, e.g. "loss".

    Returns:
      The attribute.

    Raises:
      UserError: the spec lacks a file or a name, the file does not exist or raises, or it does not define the name.
    """
    file, _, name = spec.rpartition(":")
    if not file.endswith(".py") or not name:
        raise UserError(f'A custom {kind} must be given as FILE.py:NAME, got "{spec}".')
    path = Path(file)
    if not path.is_file():
        raise UserError(f'{kind} "{spec}": {_describe_missing(path)}')
    module = _run_file(path.resolve(), path.stat().st_mtime_ns)
    if not hasattr(module, name):
        public = [n for n, value in vars(module).items() if not n.startswith("_") and not inspect.ismodule(value)]
        raise UserError(f'{path} has no {kind} "{name}"{did_you_mean(name, public)}')
    return getattr(module, name)


def plugin_hash(spec: str) -> str:
    """Return the SHA-256 (hexadecimal) of the file named in `FILE.py:NAME`."""
    return hashlib.sha256(Path(spec.rpartition(":")[0]).read_bytes()).hexdigest()


def _describe_missing(path: Path) -> str:
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}."
    return f"there is no file {path}{did_you_mean(path.name, sorted(p.name for p in path.parent.glob('*.py')))}"


@functools.cache
def _run_file(path: Path, mtime_ns: int) -> ModuleType:
    """Execute a file as a module; `mtime_ns` is part of the cache key, so a changed file is executed again."""
    module = ModuleType(f"tljax_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses resolve their annotations there
    try:
        # importlib would write byte code beside the file and detect changes only to the second.
        exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    except Exception as error:
        del sys.modules[module.__name__]
        raise UserError(_format_error(path, error)) from error
    return module


def _format_error(path: Path, error: Exception) -> str:
    """Return a one-line message with the line of the file that raised the error."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines = [error.lineno]
        error = SyntaxError(error.msg)
    location = f"{path}, line {lines[-1]}" if lines else str(path)
    text = " ".join(str(error).split())
    return f"{location}: {text}" if isinstance(error, UserError) else f"{location}: {type(error).__name__}: {text}"
