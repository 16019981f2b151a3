"""COCO (Lin et al. 2014, arXiv:1405.0312): one JSON file per split, with boxes and polygons or run lengths."""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from tljax.config import DataConfig
from tljax.config.fields import field
from tljax.data.dataset import IGNORED, RawDataset
from tljax.data.sources import options as source_options
from tljax.data.sources.images import read_image
from tljax.data.sources.records import Example, ImageRecord, Objects, data_root, make_objects, read_records
from tljax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Options:
    """Paths of the files, relative to `data.path`."""

    train: str | None = field(None, "JSON file; None: the only annotations/instances_train*.json")
    test: str | None = field(None, "JSON file; None: the only annotations/instances_val*.json")
    valid: str | None = field(None, "JSON file; None: validation is held out of train")
    train_images: str | None = field(None, "folder; None: named as its JSON file, without 'instances_'")
    test_images: str | None = field(None, "folder; None: likewise")
    valid_images: str | None = field(None, "folder; None: likewise")


def load(config: DataConfig, task: str) -> RawDataset:
    """Load boxes, or masks in which smaller objects are drawn over larger ones and class 0 is the background.

    Classes are in the order of the category ids. Pixels that only crowds cover are `IGNORED`.

    Args:
      config: the data section of the config.
      task: "segmentation" or "detection".

    Raises:
      UserError: a JSON file is missing or invalid as a whole, or `read_records` fails.
    """
    options = source_options.parse_options(config, Options)
    root = data_root(config)
    records = {}
    categories = None
    for split, pattern in (("train", "instances_train*.json"), ("valid", None), ("test", "instances_val*.json")):
        name = getattr(options, split)
        if name:
            path = root / name
        elif pattern:
            path = _find_json(root / "annotations", pattern, split)
        else:
            continue
        content = _read_json(path)
        if categories not in (None, content["categories"]):
            raise UserError(f"{path} has other categories than the file for train.")
        categories = content["categories"]
        image_folder = getattr(options, f"{split}_images") or path.stem.removeprefix("instances_")
        records[split] = _image_records(path, content, _check_folder(root, image_folder, split), task)
    classes = tuple(name for _, name in sorted(categories.items()))
    if task == "segmentation":
        classes = ("background", *classes)
        if len(classes) > IGNORED:
            raise UserError(f"{root} has {len(classes) - 1} categories, but a mask can have {IGNORED - 1} at most.")
    return read_records(records, classes, config)


def _find_json(annotations: Path, pattern: str, split: str) -> Path:
    paths = sorted(annotations.glob(pattern))
    if len(paths) != 1:
        raise UserError(f"{annotations} has {len(paths)} files {pattern}: set data.options.{split}.")
    return paths[0]


def _check_folder(root: Path, name: str, split: str) -> Path:
    if not (root / name).is_dir():
        raise UserError(f"There is no folder {root / name}: set data.options.{split}_images.")
    return root / name


def _read_json(path: Path) -> dict:
    """Return categories {id: name}, images {id: record} and annotations {image id: records} of a file."""
    try:
        content = json.loads(path.read_bytes())
        categories = {int(c["id"]): str(c["name"]) for c in content["categories"]}
        images = {i["id"]: i | {"file_name": str(i["file_name"])} for i in content["images"]}
        annotations = collections.defaultdict(list)
        for record in content["annotations"]:
            annotations[record["image_id"]].append(record | {"id": record.get("id", "without id")})
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except KeyError as error:
        raise UserError(f"{path} is not COCO JSON: {error} is missing.") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not COCO JSON: {error}.") from error
    if len(categories) != len(content["categories"]) or len(images) != len(content["images"]) or not categories:
        raise UserError(f"{path} must have categories, and the ids of its categories and images must be unique.")
    if unknown := annotations.keys() - images.keys():
        raise UserError(f"{path} has annotations of the image {min(unknown, key=str)}, which it does not list.")
    return {"categories": categories, "images": images, "annotations": annotations}


def _image_records(path: Path, content: dict, image_folder: Path, task: str) -> list[ImageRecord]:
    class_index = {category_id: k for k, category_id in enumerate(sorted(content["categories"]))}
    make_target = _mask_target if task == "segmentation" else _box_target
    records = []
    for image_id, image_info in content["images"].items():
        file = image_folder / image_info["file_name"]
        annotations = content["annotations"].get(image_id, [])
        read = functools.partial(_read_example, make_target, path, file, image_info, annotations, class_index)
        records.append(ImageRecord(str(file), read))
    return records


def _read_example(
    make_target, path: Path, file: Path, image_info: dict, annotations: list[dict], class_index: dict[int, int]
) -> Example:
    image = read_image(file)
    height, width = image.shape[:2]
    listed_size = image_info.get("height") or height, image_info.get("width") or width
    if listed_size != (height, width):
        raise UserError(f"{file} is {width}×{height} pixels, but {path} has {listed_size[1]}×{listed_size[0]}.")
    for a in annotations:
        if not isinstance(a.get("category_id"), int) or a["category_id"] not in class_index:
            raise UserError(f"{_origin(path, a, file)} has the unknown category {a.get('category_id')!r}.")
    labels = [class_index[a["category_id"]] for a in annotations]
    origins = [_origin(path, a, file) for a in annotations]
    return Example(image, make_target(image, annotations, labels, origins))


def _origin(path: Path, annotation: dict, file: Path) -> str:
    """Return how error messages refer to an annotation."""
    return f"{path}: annotation {annotation['id']} of {file.name}"


def _box_target(image: np.ndarray, annotations: list[dict], labels: list[int], origins: list[str]) -> Objects:
    boxes = []
    for a, origin in zip(annotations, origins, strict=True):
        if not _all_finite(a.get("bbox"), 4):
            raise UserError(f"{origin} has no bbox of four finite numbers.")
        x, y, width, height = a["bbox"]
        boxes.append([y, x, y + height, x + width])
    return make_objects(image, boxes, labels, [bool(a.get("iscrowd")) for a in annotations])


def _mask_target(image: np.ndarray, annotations: list[dict], labels: list[int], origins: list[str]) -> np.ndarray:
    mask = np.zeros(image.shape[:2], np.uint8)
    regions = []
    for a, label, origin in zip(annotations, labels, origins, strict=True):
        region = _decode_region(a.get("segmentation"), image.shape[:2], origin)
        if a.get("iscrowd"):
            mask[region] = IGNORED
        else:
            regions.append((region.sum(), region, label + 1))
    # The sort is stable: regions of equal area are drawn in the order of the file.
    for _, region, value in sorted(regions, key=lambda r: -r[0]):
        mask[region] = value
    return mask


def _decode_region(segmentation, size: tuple[int, int], origin: str) -> np.ndarray:
    """Return the inside of a segmentation as bool [H, W].

    Args:
      segmentation: polygons [[x, y, x, y, ...], ...], or {"size": ..., "counts": run lengths, compressed or not}.
      size: height and width of the image.
      origin: start of error messages.
    """
    height, width = size
    if isinstance(segmentation, dict):
        if segmentation.get("size") != [height, width]:
            raise UserError(f"{origin} has run lengths of another size than the image.")
        runs: Any = segmentation.get("counts")
        runs = _decompress_runs(runs) if isinstance(runs, str) else runs
        valid = isinstance(runs, list) and all(type(r) is int and r >= 0 for r in runs)
        if not valid or sum(runs) != height * width:
            raise UserError(f"{origin} has run lengths that do not add up to the image's size.")
        # Runs go down the columns and alternate between outside and inside, starting outside.
        return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T
    if not isinstance(segmentation, list) or not segmentation:
        raise UserError(f"{origin} has no segmentation.")
    if not all(_all_finite(p) and len(p) >= 6 and len(p) % 2 == 0 for p in segmentation):
        raise UserError(f"{origin} has a polygon that is not three or more corners x, y of finite numbers.")
    # The time to draw an edge grows with its length, and valid polygons do not extend this far.
    if max(abs(v) for p in segmentation for v in p) > 4 * max(size):
        raise UserError(f"{origin} has a polygon far outside the image.")
    from pycocotools import mask as coding  # imported late: only polygons need it

    merged: Any = coding.merge(coding.frPyObjects(segmentation, height, width))
    return _decode_region({"size": [height, width], "counts": merged["counts"].decode()}, size, origin)


def _decompress_runs(text: str) -> list[int]:
    """Return the run lengths of COCO's compressed format; an empty list if the text is invalid.

    Each character, minus "0", has six bits: the low five are a part of a signed number, low parts first, and the
    highest is set if more parts follow. From the fourth on, numbers are differences from the run two before.
    pycocotools is not used because it accepts strings that are too short and returns uninitialized memory for them.
    """
    runs, value, shift = [], 0, 0
    for code in (ord(c) - 48 for c in text):
        if not 0 <= code < 64 or shift > 60:
            return []
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (1 << shift) if code & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, shift = 0, 0
    return [] if shift else runs


def _all_finite(values, count: int | None = None) -> bool:
    """Return whether `values` is a list of finite numbers, and of the given length if there is one."""
    numbers = isinstance(values, list) and all(type(v) in (int, float) and math.isfinite(v) for v in values)
    return numbers and count in (None, len(values))
