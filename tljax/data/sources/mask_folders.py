"""Folders of images and of masks with the same names: PATH/{train,valid,test}/{images,masks}/NAME.*."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np

from tljax.config import DataConfig
from tljax.config.fields import field
from tljax.data.dataset import IGNORED, RawDataset
from tljax.data.sources import options as source_options
from tljax.data.sources.images import IMAGE_SUFFIXES, check_mask, read_image, read_mask
from tljax.data.sources.records import Example, ImageRecord, data_root, read_records
from tljax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Options:
    """Meaning of the mask values."""

    classes: tuple[str, ...] = field((), "names of the values 0, 1, ...; empty: numbers, as many as the masks have")


def load(config: DataConfig, task: str) -> RawDataset:
    """Load masks of class numbers, 255 ignored; `PATH/valid` is optional.

    If all masks together have only the values 0 and 255, and there are two class names or none, 255 is class 1.

    Args:
      config: the data section of the config.
      task: "segmentation".

    Raises:
      UserError: `read_records` fails; a bad file is also a mask of another size than its image or with a value beyond
        the class names.
    """
    options = source_options.parse_options(config, Options)
    root = data_root(config)
    num_classes = len(options.classes) or None
    records = {}
    for split in ("train", "valid", "test"):
        if split == "valid" and not (root / split).is_dir():
            continue
        images, masks = (files_by_stem(root / split / kind) for kind in ("images", "masks"))
        records[split] = [
            ImageRecord(
                str(images.get(stem) or masks[stem]),
                functools.partial(_read_example, root / split, stem, images.get(stem), masks.get(stem), num_classes),
            )
            for stem in sorted(images.keys() | masks.keys())
        ]
    dataset = read_records(records, options.classes, config)
    splits = {split: getattr(dataset, split) for split in records}
    values = set().union(*(np.unique(s.labels).tolist() for s in splits.values()))
    binary = values == {0, IGNORED} and num_classes in (None, 2)
    if binary:
        splits = {k: dataclasses.replace(s, labels=(s.labels == IGNORED).astype(np.uint8)) for k, s in splits.items()}
    count = 2 if binary else 1 + max(values - {IGNORED}, default=0)
    return dataclasses.replace(dataset, **splits, classes=options.classes or tuple(map(str, range(count))))


def files_by_stem(folder: Path) -> dict[str, Path]:
    """Return the image files of a folder by name without ending. Raises UserError if two files share a name."""
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}.")
    files: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() not in IMAGE_SUFFIXES or file.name.startswith("."):
            continue
        if file.stem in files:
            raise UserError(f"{files[file.stem]} and {file} have the same name without ending.")
        files[file.stem] = file
    return files


def _read_example(
    folder: Path, stem: str, image_file: Path | None, mask_file: Path | None, num_classes: int | None
) -> Example:
    if image_file is None or mask_file is None:
        kind = "images" if image_file is None else "masks"
        raise UserError(f"There is no {folder / kind / stem}.* for {image_file or mask_file}.")
    image = read_image(image_file)
    return Example(image, check_mask(read_mask(mask_file), image, num_classes, str(mask_file)))
