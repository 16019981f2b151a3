"""Inspection of image files before a run: sizes, formats, modes, bad files and duplicates."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from tljax.data.image_store import read_all
from tljax.data.labeled_files import LabeledFiles
from tljax.data.progress import track
from tljax.data.sources.images import ImageFormat, ImageHeader, read_header, read_image
from tljax.errors import UserError

THUMBNAIL = ImageFormat(96, "pad")


@dataclasses.dataclass(frozen=True, eq=False)
class Inspection:
    """Facts about image files.

    Attributes:
      sizes: width and height in pixels of the good files, int [K, 2].
      formats: number of files by format and mode, such as "PNG RGBA".
      num_transparent: number of files with transparent pixels.
      num_rotated: number of files whose EXIF orientation rotates or mirrors them.
      errors: message for each bad file by name.
      duplicates: groups of two or more files with equal pixels, as indices of the files.
      thumbnails: index → uint8 [S, S, 1 or 3], for some files of each class.
    """

    sizes: np.ndarray
    formats: Counter[str]
    num_transparent: int
    num_rotated: int
    errors: dict[str, str]
    duplicates: list[list[int]]
    thumbnails: dict[int, np.ndarray]


def inspect_files(files: LabeledFiles, images_per_class: int) -> Inspection:
    """Read all files once and return facts about them.

    Args:
      files: of the source.
      images_per_class: number of thumbnails of each class.
    """
    headers: list[ImageHeader] = []
    errors: dict[str, str] = {}
    thumbnails: dict[int, np.ndarray] = {}
    by_thumbnail: dict[bytes, list[int]] = defaultdict(list)
    counts: Counter[int] = Counter()
    for i, facts in enumerate(track(read_all(files.paths, _read), "inspecting images", len(files))):
        if isinstance(facts, UserError):
            errors[files.names[i]] = str(facts)
            continue
        header, thumbnail = facts
        headers.append(header)
        by_thumbnail[hashlib.blake2b(thumbnail, digest_size=16).digest()].append(i)
        label = int(files.labels[i])
        if counts[label] < images_per_class:
            counts[label] += 1
            thumbnails[i] = thumbnail
    return Inspection(
        sizes=np.array([(header.width, header.height) for header in headers], np.int64).reshape(-1, 2),
        formats=Counter(header.kind for header in headers),
        num_transparent=sum(header.transparent for header in headers),
        num_rotated=sum(header.orientation > 1 for header in headers),
        errors=errors,
        duplicates=_find_duplicates(files.paths, by_thumbnail.values()),
        thumbnails=thumbnails,
    )


def _read(path: Path) -> tuple[ImageHeader, np.ndarray]:
    return read_header(path), THUMBNAIL.read(path)


def _find_duplicates(paths: Sequence[Path], candidates: Iterable[list[int]]) -> list[list[int]]:
    """Return groups of files with equal pixels among groups of files whose thumbnails are equal."""
    groups = []
    for candidate in candidates:
        by_pixels = defaultdict(list)
        for i in candidate if len(candidate) > 1 else ():
            pixels = read_image(paths[i], oriented=True)
            by_pixels[repr(pixels.shape), hashlib.blake2b(pixels, digest_size=16).digest()].append(i)
        groups += [group for group in by_pixels.values() if len(group) > 1]
    return sorted(groups)
