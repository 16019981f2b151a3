"""Plugins: objects loaded from a Python file by a name of the form `path/to/FILE.py:NAME`."""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeGuard

from tljax.errors import UserError, did_you_mean

# Name under which a module made from a file holds the SHA-256 of its source.
_HASH = "__source_sha256__"


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
    module = load_file(file, f'{kind} "{spec}"')
    if not hasattr(module, name):
        public = [n for n, value in vars(module).items() if not n.startswith("_") and not inspect.ismodule(value)]
        raise UserError(f'{file} has no {kind} "{name}"{did_you_mean(name, public)}')
    return getattr(module, name)


def load_file(file: str, subject: str = "plugin") -> ModuleType:
    """Return a Python file as a module; it is executed once per process and version.

    Args:
      file: path, relative to the current folder or absolute.
      subject: start of the error message about a missing file.

    Raises:
      UserError: the file does not exist or raises.
    """
    path = Path(file)
    if not path.is_file():
        raise UserError(f"{subject}: {_describe_missing(path)}")
    return _run_file(path.resolve(), path.stat().st_mtime_ns)


def plugin_file(spec: str) -> str:
    """Return the file of `FILE.py:NAME`."""
    return spec.rpartition(":")[0]


def plugin_hash(spec: str) -> str:
    """Return the SHA-256 (hexadecimal) of the file named in `FILE.py:NAME`."""
    return hashlib.sha256(Path(plugin_file(spec)).read_bytes()).hexdigest()


def plugin_hashes(names: Iterable[str]) -> dict[str, str]:
    """Return {name: SHA-256 of its file} of those names that refer to a file, without repetition."""
    return {name: plugin_hash(name) for name in dict.fromkeys(names) if is_plugin(name)}


def changed_plugins(hashes: Mapping[str, str]) -> list[str]:
    """Return those names of {name: SHA-256 of its file} whose file exists and has another hash now."""
    return [
        name for name, digest in hashes.items() if Path(plugin_file(name)).is_file() and plugin_hash(name) != digest
    ]


def accepts(function: Any, *args: Any, **options: Any) -> TypeGuard[Callable[..., Any]]:
    """Return whether a function or class can be called with these arguments, by its signature."""
    try:
        inspect.signature(function).bind(*args, **options)
    except (TypeError, ValueError):
        return False
    return True


def hashes_of_types(types: Iterable[type]) -> list[str]:
    """Return the SHA-256 of the files, as they were executed, that define any of these classes; sorted."""
    modules = {sys.modules.get(cls.__module__) for cls in types}
    return sorted({vars(module)[_HASH] for module in modules if module is not None and _HASH in vars(module)})


def _describe_missing(path: Path) -> str:
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}."
    return f"there is no file {path}{did_you_mean(path.name, sorted(p.name for p in path.parent.glob('*.py')))}"


@functools.cache
def _run_file(path: Path, mtime_ns: int) -> ModuleType:
    """Execute a file as a module; `mtime_ns` is part of the cache key, so a changed file is executed again."""
    module = ModuleType(f"tljax_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}")
    source = path.read_bytes()
    module.__file__ = str(path)
    vars(module)[_HASH] = hashlib.sha256(source).hexdigest()
    sys.modules[module.__name__] = module  # dataclasses resolve their annotations there
    try:
        # importlib would write byte code beside the file and detect changes only to the second.
        exec(compile(source, str(path), "exec"), vars(module))
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
