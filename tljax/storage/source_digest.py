"""A digest of the source files that a module's results depend on."""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

PACKAGE = Path(__file__).parent.parent


@functools.cache
def source_digest(modules: tuple[str, ...], package: Path = PACKAGE) -> str:
    """SHA-256 over the source of modules and of all that they import from their package, directly or not.

    Args:
      modules: names such as "tljax.models.layers".
      package: folder of the package.
    """
    return digest_files(imported_files(modules, package), package)


def digest_files(files: Sequence[Path], package: Path = PACKAGE) -> str:
    """SHA-256 over the names below `package` and the bytes of files."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(package)} ".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def imported_files(modules: Sequence[str], package: Path = PACKAGE) -> list[Path]:
    """Return the files of modules and of all that they import from the package, sorted by path."""
    found: set[Path] = set()
    todo = list(modules)
    while todo:
        path = _file_of(todo.pop(), package)
        if path is not None and path not in found:
            found.add(path)
            todo += _imports(ast.parse(path.read_bytes()))
    return sorted(found)


def _file_of(module: str, package: Path) -> Path | None:
    """The file of a module; None for what is no module of the package, such as a function that is imported."""
    name, *parts = module.split(".")
    if name != package.name:
        return None
    path = package.joinpath(*parts)
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            # What is imported may itself be a module.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
