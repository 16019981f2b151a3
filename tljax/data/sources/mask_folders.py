"""Folders of pictures and of masks with the same names: PATH/{train,valid,test}/{images,masks}/NAME.*."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np

from tljax.config import DataConfig
from tljax.config.fields import field
from tljax.data.dataset import RawDataset
from tljax.data.sources import options as source_options
from tljax.data.sources.images import ENDINGS, IGNORED, check_mask, read_image, read_mask
from tljax.data.sources.records import Example, ImageRecord, data_root, read_records
from tljax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Options:
    """What the values mean."""

    classes: tuple[str, ...] = field((), "names of the values 0, 1, ...; empty: numbers, as many as the masks have")


def load(config: DataConfig, task: str) -> RawDataset:
    """Masks of class numbers, 255 ignored; `PATH/valid` is optional.

    Where there are two classes, or no names, and all masks together have no value but 0 and 255, 255 is class 1.

    Raises:
      UserError: what `collect` raises, for masks of another size than their picture and values beyond the names, too.
    """
    options, root = source_options.parse_options(config, Options), data_root(config)
    known = len(options.classes) or None
    entries = {}
    for split in ("train", "valid", "test"):
        if split == "valid" and not (root / split).is_dir():
            continue
        files, masks = (by_name(root / split / kind) for kind in ("images", "masks"))
        entries[split] = [
            ImageRecord(
                str(files.get(name) or masks[name]),
                functools.partial(_read, root / split, name, files.get(name), masks.get(name), known),
            )
            for name in sorted(files.keys() | masks.keys())
        ]
    made = read_records(entries, options.classes, config)
    splits = {split: getattr(made, split) for split in entries}
    values = set().union(*(np.unique(s.labels).tolist() for s in splits.values()))
    binary = values == {0, IGNORED} and known in (None, 2)
    if binary:
        splits = {k: dataclasses.replace(s, labels=(s.labels == IGNORED).astype(np.uint8)) for k, s in splits.items()}
    count = 2 if binary else 1 + max(values - {IGNORED}, default=0)
    return dataclasses.replace(made, **splits, classes=options.classes or tuple(map(str, range(count))))


def by_name(path: Path) -> dict[str, Path]:
    """The picture files of a folder by their names without endings. Raises UserError for two of one name."""
    if not path.is_dir():
        raise UserError(f"There is no folder {path}.")
    files: dict[str, Path] = {}
    for file in sorted(path.iterdir()):
        if file.suffix.lower() not in ENDINGS or file.name.startswith("."):
            continue
        if file.stem in files:
            raise UserError(f"{files[file.stem]} and {file} have one name.")
        files[file.stem] = file
    return files


def _read(parent: Path, name: str, picture: Path | None, mask: Path | None, classes: int | None) -> Example:
    for kind, file in (("images", picture), ("masks", mask)):
        if file is None:
            raise UserError(f"There is no {parent / kind / name}.*, though {picture or mask} is there.")
    image = read_image(picture)
    return Example(image, check_mask(read_mask(mask), image, classes, str(mask)))
