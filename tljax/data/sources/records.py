"""Pictures with masks or boxes, one by one from their files, put together as splits of one size."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tljax.config import DataConfig
from tljax.data.dataset import RawDataset, Split
from tljax.data.sources.images import resize
from tljax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Objects:
    """What stands in a picture.

    Attributes:
      boxes: float32 [K, 4], [y0, x0, y1, x1] in pixels.
      labels: int32 [K].
      crowd: bool [K].
    """

    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray


class Example(NamedTuple):
    """A picture uint8 [H, W, C], and its mask uint8 [H, W] or its objects."""

    image: np.ndarray
    target: np.ndarray | Objects


class ImageRecord(NamedTuple):
    """A picture that has not been read yet: its file, for messages, and what reads it or raises UserError."""

    file: str
    read: Callable[[], Example]


def data_root(config: DataConfig) -> Path:
    """`data.path`. Raises UserError where it is not a folder."""
    if config.path is None:
        raise UserError(f"data.name='{config.name}' needs data.path, the folder of the files.")
    if not Path(config.path).is_dir():
        raise UserError(f"data.path={config.path} is not a folder.")
    return Path(config.path)


def read_text(path: Path) -> str:
    """A text file in UTF-8. Raises UserError naming it."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} cannot be read: it is not UTF-8.") from error


def objects(image: np.ndarray, boxes: Sequence, labels: Sequence[int], crowd: Sequence[bool] | None = None) -> Objects:
    """Boxes [K, 4], finite and in pixels of the picture, cut at its edges; those that have no area are left out."""
    height, width = image.shape[:2]
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4).clip(0, [height, width, height, width]).astype(np.float32)
    crowd = np.zeros(len(boxes), bool) if crowd is None else np.asarray(crowd, bool)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
    return Objects(boxes[kept], np.asarray(labels, np.int32)[kept], crowd[kept])


def read_records(
    records: Mapping[str, Sequence[ImageRecord]], classes: tuple[str, ...], config: DataConfig
) -> RawDataset:
    """Reads every picture and brings them to one size, `config.image_size` if there is one.

    Args:
      records: of "train" and "test", perhaps of "valid".
      classes: their names.
      config: of the data; with `on_error="skip"`, a bad file is left out and named in `skipped`.

    Raises:
      UserError: a bad file, no good file in a split, or pictures of several sizes and no `config.image_size`.
    """
    skipped, read, sizes, console = [], {}, set(), Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        for split, rows in records.items():
            if not rows:
                raise UserError(f"data.name='{config.name}' has no pictures for {split} in {config.path}.")
            read[split], first = [], None
            for entry in bar.track(rows, description=f"reading {split}"):
                try:
                    example = entry.read()
                except UserError as error:
                    if config.on_error == "error":
                        raise
                    skipped.append(entry.file)
                    first = first or error
                    continue
                # Before the next one is read: a whole set of photographs as they are may not fit into memory.
                read[split].append(_resized(example, config.image_size))
                sizes.add(read[split][-1].image.shape[:2])
                if len(sizes) > 1:
                    raise UserError(f"{entry.file} is not of the size of those before it: set data.image_size.")
            if not read[split]:
                raise UserError(f"None of the {len(rows)} pictures for {split} can be used; of the first: {first}")
    return RawDataset(**_splits(read), classes=classes, skipped=tuple(skipped))


def _resized(example: Example, side: int | None) -> Example:
    """The same, square if there is a `side`: masks by the nearest pixel, boxes scaled."""
    image, target = example
    if side is None:
        return example
    if isinstance(target, Objects):
        scale = np.float32(side) / np.array([*image.shape[:2]] * 2, np.float32)
        target = dataclasses.replace(target, boxes=target.boxes * scale)
    else:
        target = resize(target, (side, side), Image.Resampling.NEAREST)
    return Example(resize(image, (side, side)), target)


def _splits(read: dict[str, list[Example]]) -> dict[str, Split]:
    """Splits with as many channels as any picture has and room for as many boxes; it empties the lists."""
    channels = max(example.image.shape[-1] for examples in read.values() for example in examples)
    found = [e.target for examples in read.values() for e in examples if isinstance(e.target, Objects)]
    most = max([1, *(len(target.labels) for target in found)])
    crowds = any(target.crowd.any() for target in found)
    return {split: _split(examples, channels, most, crowds) for split, examples in read.items()}


def _split(examples: list[Example], channels: int, most: int, crowds: bool) -> Split:
    # Taken out of the list as it goes, so that there are never two copies of them all.
    count, (height, width) = len(examples), examples[0].image.shape[:2]
    images = np.empty((count, height, width, channels), np.uint8)
    masks, boxes, crowd = None, None, None
    if isinstance(examples[0].target, Objects):
        labels, boxes = np.full((count, most), -1, np.int32), np.zeros((count, most, 4), np.float32)
        crowd = np.zeros((count, most), bool) if crowds else None
    else:
        masks = np.empty((count, height, width), np.uint8)
    for i in reversed(range(count)):
        images[i], target = examples.pop()  # a grey picture fills all channels
        if masks is not None:
            masks[i] = target
            continue
        k = len(target.labels)
        labels[i, :k], boxes[i, :k] = target.labels, target.boxes
        if crowds:
            crowd[i, :k] = target.crowd
    return Split(images, labels if masks is None else masks, boxes, crowd)
