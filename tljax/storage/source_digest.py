"""A digest of the source files that the results of a module depend on."""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

PACKAGE = Path(__file__).parent.parent


@functools.cache
def source_digest(modules: tuple[str, ...], package: Path = PACKAGE) -> str:
    """Return the SHA-256 of the source of modules and of everything that they import from their package.

    Args:
      modules: module names such as "tljax.models.layers".
      package: folder of the package.
    """
    return digest_files(imported_files(modules, package), package)


def digest_files(files: Sequence[Path], package: Path = PACKAGE) -> str:
    """Return the SHA-256 of the files' paths relative to `package` and of their content."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(package)} ".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def imported_files(modules: Sequence[str], package: Path = PACKAGE) -> list[Path]:
    """Return the files of modules and of their direct and indirect imports from the package, sorted by path."""
    files: set[Path] = set()
    pending = list(modules)
    while pending:
        path = _module_file(pending.pop(), package)
        if path is not None and path not in files:
            files.add(path)
            pending += _imported_names(ast.parse(path.read_bytes()))
    return sorted(files)


def _module_file(module: str, package: Path) -> Path | None:
    """Return the file of a module; None if the name is not a module of the package but, say, a function in one."""
    name, *parts = module.split(".")
    if name != package.name:
        return None
    path = package.joinpath(*parts)
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def _imported_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            # The imported name may itself be a module.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
