"""Folders of images: PATH/CLASS/*, or PATH/{train,valid,test}/CLASS/*.

Images in folders inside a class folder belong to the class.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tljax.config import DataConfig
from tljax.data.labeled_files import SPLIT_NAMES, LabeledFiles
from tljax.data.sources.images import IMAGE_SUFFIXES
from tljax.data.sources.options import NoOptions, parse_options
from tljax.data.sources.records import data_root
from tljax.errors import UserError


def load(config: DataConfig, task: str) -> LabeledFiles:
    """List the images of a folder of class folders, or of split folders of class folders.

    Args:
      config: the data section of the config.
      task: "classification".

    Raises:
      UserError: there are fewer than two class folders, or one of them has no images.
    """
    parse_options(config, NoOptions)
    root = data_root(config)
    split_folders = _find_split_folders(root)
    ignored: list[str] = []
    rows = []  # (name, class, split)
    for folder, split in split_folders.items() or [(root, "")]:
        for class_folder in _list_folders(folder, root, ignored):
            names = list(_find_images(class_folder, root, ignored))
            if not names:
                raise UserError(_describe_empty(class_folder))
            rows += [(name, class_folder.name, split) for name in names]
    if split_folders:
        _list_folders(root, root, ignored)  # for its ignored files
    classes = tuple(sorted({class_name for _, class_name, _ in rows}))
    if len(classes) < 2:
        raise UserError(_describe_too_few(root, classes))
    names, class_names, splits = zip(*sorted(rows), strict=True)
    return LabeledFiles(
        names=names,
        paths=tuple(root / name for name in names),
        labels=np.array([classes.index(name) for name in class_names], np.int32),
        classes=classes,
        splits=splits if split_folders else None,
        ignored=tuple(sorted(ignored)),
    )


def _find_split_folders(root: Path) -> dict[Path, str]:
    """Return the folders of splits and the splits; empty if the folders in `root` are classes.

    Raises:
      UserError: two folders are the same split, or there are other folders beside those of splits.
    """
    folders = [p for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    splits = {p: SPLIT_NAMES[p.name.lower()] for p in folders if p.name.lower() in SPLIT_NAMES}
    if "train" not in splits.values() or (len(splits) == 1 and len(folders) > 1):
        return {}
    others = [p.name for p in folders if p not in splits]
    if others:
        raise UserError(f"{root} has folders of splits and also {', '.join(others[:5])}: move or remove the others.")
    if len(set(splits.values())) < len(splits):
        raise UserError(f"{root} has two folders for one split: {', '.join(p.name for p in splits)}.")
    return splits


def _list_folders(folder: Path, root: Path, ignored: list[str]) -> list[Path]:
    """Return the folders in a folder by name; add its files and hidden folders to `ignored`."""
    entries = sorted(folder.iterdir())
    is_class = [path.is_dir() and not path.name.startswith(".") for path in entries]
    ignored += [
        _relative(path, root) + "/" * path.is_dir() for path, use in zip(entries, is_class, strict=True) if not use
    ]
    return [path for path, use in zip(entries, is_class, strict=True) if use]


def _find_images(folder: Path, root: Path, ignored: list[str]) -> Iterator[str]:
    """Yield the images in a folder and the folders in it, relative to `root`; add other files to `ignored`."""
    visited = set()
    for path, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(path)) in visited:  # a link to a folder above
            folders.clear()
            continue
        visited.add(real)
        ignored += [f"{_relative(Path(path, name), root)}/" for name in folders if name.startswith(".")]
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            relative = _relative(Path(path, name), root)
            if name.startswith(".") or Path(name).suffix.lower() not in IMAGE_SUFFIXES:
                ignored.append(relative)
            else:
                yield relative


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _describe_empty(folder: Path) -> str:
    suffixes = sorted({p.suffix.lower() for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")})
    content = f"only files of the types {', '.join(suffixes[:5])}" if suffixes else "no files"
    return f"The class folder {folder} has no images, {content}: remove it, or convert its files to PNG or JPEG."


def _describe_too_few(root: Path, classes: tuple[str, ...]) -> str:
    folder = root / classes[0] if classes else root
    if classes and sum(p.is_dir() for p in folder.iterdir()) > 1:
        return f"{root} has one class folder, {classes[0]}; did you mean data.path={folder}?"
    found = f"one class folder, {classes[0]}" if classes else "no class folders"
    return f"{root} has {found}; data.name='folder' needs the images in PATH/CLASS/, a folder for each class."
