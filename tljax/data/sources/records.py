"""Images with masks or boxes, read one by one from files and stacked to splits of one image size."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from tljax.config import DataConfig
from tljax.data.dataset import RawDataset, Split
from tljax.data.progress import track
from tljax.data.sources.images import resize
from tljax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Objects:
    """Boxes of one image.

    Attributes:
      boxes: float32 [K, 4], [y0, x0, y1, x1] in pixels.
      labels: int32 [K].
      crowd: bool [K].
    """

    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray


class Example(NamedTuple):
    """An image uint8 [H, W, C] and its mask uint8 [H, W] or its objects."""

    image: np.ndarray
    target: np.ndarray | Objects


class ImageRecord(NamedTuple):
    """An image that has not been read yet.

    Attributes:
      file: the file, for messages.
      read: returns the example, or raises UserError.
    """

    file: str
    read: Callable[[], Example]


def data_root(config: DataConfig) -> Path:
    """Return `data.path`. Raises UserError if it is not a folder."""
    if config.path is None:
        raise UserError(f"data.name='{config.name}' needs data.path, the folder of the files.")
    if not Path(config.path).is_dir():
        raise UserError(f"data.path={config.path} is not a folder.")
    return Path(config.path)


def read_text(path: Path) -> str:
    """Read a text file in UTF-8. Raises UserError naming the file."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} cannot be read: it is not UTF-8.") from error


def make_objects(image: np.ndarray, boxes: ArrayLike, labels: ArrayLike, crowd: ArrayLike | None = None) -> Objects:
    """Clip boxes to the image and leave out those without area.

    Args:
      image: [H, W, C].
      boxes: [K, 4], [y0, x0, y1, x1] in pixels, finite.
      labels: [K].
      crowd: [K]; None: no box is a crowd.
    """
    height, width = image.shape[:2]
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4).clip(0, [height, width, height, width]).astype(np.float32)
    crowd = np.zeros(len(boxes), bool) if crowd is None else np.asarray(crowd, bool)
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(1)
    return Objects(boxes[has_area], np.asarray(labels, np.int32)[has_area], crowd[has_area])


def read_records(
    records: Mapping[str, Sequence[ImageRecord]], classes: tuple[str, ...], config: DataConfig
) -> RawDataset:
    """Read all images, resized to squares of `config.image_size` if it is set.

    Args:
      records: images of "train", "test" and optionally "valid".
      classes: class names.
      config: the data section of the config; with `on_error="skip"`, bad files are left out and listed in `skipped`.

    Raises:
      UserError: a file is bad, a split has no good file, or images differ in size and `config.image_size` is not set.
    """
    skipped, sizes = [], set()
    examples: dict[str, list[Example]] = {}
    for split, rows in records.items():
        if not rows:
            raise UserError(f"data.name='{config.name}' has no images for {split} in {config.path}.")
        examples[split] = []
        first_error = None
        for record in track(rows, f"reading {split}", len(rows)):
            try:
                example = record.read()
            except UserError as error:
                if config.on_error == "error":
                    raise
                skipped.append(record.file)
                first_error = first_error or error
                continue
            # Resized at once: all images of a large dataset in full size may not fit into memory.
            example = _resize_example(example, config.image_size)
            examples[split].append(example)
            sizes.add(example.image.shape[:2])
            if len(sizes) > 1:
                raise UserError(f"{record.file} differs in size from the images before it: set data.image_size.")
        if not examples[split]:
            raise UserError(f"None of the {len(rows)} images for {split} can be used; first error: {first_error}")
    splits = _stack_splits(examples)
    return RawDataset(splits["train"], splits["test"], classes, splits.get("valid"), tuple(skipped))


def _resize_example(example: Example, side: int | None) -> Example:
    """Resize an example to a square, masks by nearest neighbor; return it unchanged if `side` is None."""
    image, target = example
    if side is None:
        return example
    if isinstance(target, Objects):
        scale = np.float32(side) / np.array([*image.shape[:2]] * 2, np.float32)
        target = dataclasses.replace(target, boxes=target.boxes * scale)
    else:
        target = resize(target, (side, side), Image.Resampling.NEAREST)
    return Example(resize(image, (side, side)), target)


def _stack_splits(examples: dict[str, list[Example]]) -> dict[str, Split]:
    """Stack examples to splits with the same number of channels and of boxes per image; empties the lists."""
    channels = max(example.image.shape[-1] for rows in examples.values() for example in rows)
    objects = [e.target for rows in examples.values() for e in rows if isinstance(e.target, Objects)]
    max_boxes = max([1, *(len(target.labels) for target in objects)])
    has_crowds = any(target.crowd.any() for target in objects)
    return {split: _stack(rows, channels, max_boxes, has_crowds) for split, rows in examples.items()}


def _stack(examples: list[Example], channels: int, max_boxes: int, has_crowds: bool) -> Split:
    count = len(examples)
    height, width = examples[0].image.shape[:2]
    images = np.empty((count, height, width, channels), np.uint8)
    dense = not isinstance(examples[0].target, Objects)
    labels = np.empty((count, height, width), np.uint8) if dense else np.full((count, max_boxes), -1, np.int32)
    boxes = np.zeros((count, max_boxes, 4), np.float32)
    crowd = np.zeros((count, max_boxes), bool)
    # Examples are popped from the list as they are copied, so that memory never has two copies of all of them.
    for i in reversed(range(count)):
        images[i], target = examples.pop()  # a grayscale image is copied to all channels
        if isinstance(target, Objects):
            k = len(target.labels)
            labels[i, :k], boxes[i, :k], crowd[i, :k] = target.labels, target.boxes, target.crowd
        else:
            labels[i] = target
    return Split(images, labels, None if dense else boxes, crowd if has_crowds else None)
