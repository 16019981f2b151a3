"""COCO (Lin et al. 2014, arXiv:1405.0312): one JSON file a split, with boxes and polygons or run lengths."""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import math
from pathlib import Path

import numpy as np

from tljax.config import DataConfig
from tljax.config.fields import field
from tljax.data.dataset import RawDataset
from tljax.data.sources import options as source_options
from tljax.data.sources.images import IGNORED, read_image
from tljax.data.sources.records import Example, ImageRecord, data_root, objects, read_records
from tljax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Options:
    """Where the files are, all relative to `data.path`."""

    train: str | None = field(None, "JSON file; None: the one annotations/instances_train*.json")
    test: str | None = field(None, "JSON file; None: the one annotations/instances_val*.json")
    valid: str | None = field(None, "JSON file; None: validation is held out of train")
    train_images: str | None = field(None, "folder; None: named as its JSON file, without 'instances_'")
    test_images: str | None = field(None, "folder; None: likewise")
    valid_images: str | None = field(None, "folder; None: likewise")


def load(config: DataConfig, task: str) -> RawDataset:
    """Boxes, crowds marked as such; or masks in which smaller objects lie over larger ones and class 0 is background.

    Classes stand in the order of the files' category ids. Pixels of crowds that no object covers are `IGNORED`.

    Raises:
      UserError: a file that is broken as a whole; and what `collect` raises.
    """
    options, root = source_options.parse_options(config, Options), data_root(config)
    entries, categories = {}, None
    for split, pattern in (("train", "instances_train*.json"), ("valid", None), ("test", "instances_val*.json")):
        name = getattr(options, split)
        if name is None and pattern is None:
            continue
        path = root / name if name else _only(root / "annotations", pattern, split)
        content = _load(path)
        if categories not in (None, content["categories"]):
            raise UserError(f"{path} has other categories than the file for train.")
        categories = content["categories"]
        pictures = getattr(options, f"{split}_images") or path.stem.removeprefix("instances_")
        entries[split] = _records(path, content, _image_folder(root, pictures, split), task)
    names = tuple(name for _, name in sorted(categories.items()))
    if task == "segmentation":
        names = ("background", *names)
        if len(names) > IGNORED:
            raise UserError(f"{root} has {len(names) - 1} categories, but a mask has room for {IGNORED - 1}.")
    return read_records(entries, names, config)


def _only(annotations: Path, pattern: str, split: str) -> Path:
    found = sorted(annotations.glob(pattern))
    if len(found) != 1:
        raise UserError(f"{annotations} has {len(found)} files {pattern}: name one in data.options.{split}.")
    return found[0]


def _image_folder(root: Path, name: str, split: str) -> Path:
    if not (root / name).is_dir():
        raise UserError(f"There is no folder {root / name}: name it in data.options.{split}_images.")
    return root / name


def _load(path: Path) -> dict:
    """Categories {id: name}, pictures {id: record} and annotations {picture's id: records} of a file."""
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
        raise UserError(f"{path} is not COCO's JSON: {error} is missing.") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not COCO's JSON: {error}.") from error
    if len(categories) != len(content["categories"]) or len(images) != len(content["images"]) or not categories:
        raise UserError(f"{path} must have categories, and the ids of its categories and pictures differ.")
    if unknown := annotations.keys() - images.keys():
        raise UserError(f"{path} has annotations of the picture {min(unknown, key=str)}, which it does not list.")
    return {"categories": categories, "images": images, "annotations": annotations}


def _records(path: Path, content: dict, pictures: Path, task: str) -> list[ImageRecord]:
    order = {identity: k for k, identity in enumerate(sorted(content["categories"]))}
    read = _with_mask if task == "segmentation" else _with_boxes
    entries = []
    for identity, record in content["images"].items():
        file, annotations = pictures / record["file_name"], content["annotations"].get(identity, [])
        entries.append(
            ImageRecord(str(file), functools.partial(_example, read, path, file, record, annotations, order))
        )
    return entries


def _example(read, path: Path, file: Path, record: dict, annotations: list[dict], order: dict[int, int]) -> Example:
    image = read_image(file)
    height, width = image.shape[:2]
    if (said := (record.get("height") or height, record.get("width") or width)) != (height, width):
        raise UserError(f"{file} is {width}×{height} pixels, but {path} says {said[1]}×{said[0]}.")
    for a in annotations:
        if not isinstance(a.get("category_id"), int) or a["category_id"] not in order:
            raise UserError(f"{_where(path, a, file)} has the unknown category {a.get('category_id')!r}.")
    labels = [order[a["category_id"]] for a in annotations]
    places = [_where(path, a, file) for a in annotations]
    return Example(image, read(image, annotations, labels, places))


def _where(path: Path, annotation: dict, file: Path) -> str:
    return f"{path}: annotation {annotation['id']} of {file.name}"


def _with_boxes(image: np.ndarray, annotations: list[dict], labels: list[int], places: list[str]):
    boxes = []
    for a, where in zip(annotations, places, strict=True):
        if not _finite(a.get("bbox"), 4):
            raise UserError(f"{where} has no bbox of four finite numbers.")
        x, y, width, height = a["bbox"]
        boxes.append([y, x, y + height, x + width])
    return objects(image, boxes, labels, [bool(a.get("iscrowd")) for a in annotations])


def _with_mask(image: np.ndarray, annotations: list[dict], labels: list[int], places: list[str]) -> np.ndarray:
    mask, regions = np.zeros(image.shape[:2], np.uint8), []
    for a, label, where in zip(annotations, labels, places, strict=True):
        region = _region(a.get("segmentation"), image.shape[:2], where)
        if a.get("iscrowd"):
            mask[region] = IGNORED
        else:
            regions.append((region.sum(), region, label + 1))
    # Sorting keeps the order of equals.
    for _, region, value in sorted(regions, key=lambda r: -r[0]):
        mask[region] = value
    return mask


def _region(segmentation, size: tuple[int, int], where: str) -> np.ndarray:
    """What is inside, bool [H, W], of polygons [[x, y, x, y, ...], ...] or of run lengths, compressed or not."""
    height, width = size
    if isinstance(segmentation, dict):
        if segmentation.get("size") != [height, width]:
            raise UserError(f"{where} has run lengths of another size than the picture.")
        runs = segmentation.get("counts")
        runs = _decompress(runs) if isinstance(runs, str) else runs
        whole = isinstance(runs, list) and all(type(r) is int and r >= 0 for r in runs)
        if not whole or sum(runs) != height * width:
            raise UserError(f"{where} has run lengths that do not add up to the picture.")
        # Runs go down the columns; the first one is of what is outside.
        return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T
    if not isinstance(segmentation, list) or not segmentation:
        raise UserError(f"{where} has no segmentation.")
    if not all(_finite(p) and len(p) >= 6 and len(p) % 2 == 0 for p in segmentation):
        raise UserError(f"{where} has a polygon that is not three or more corners x, y of finite numbers.")
    # The cost of drawing an edge is its length; no honest polygon reaches so far out.
    if max(abs(v) for p in segmentation for v in p) > 4 * max(size):
        raise UserError(f"{where} has a polygon far outside of the picture.")
    from pycocotools import mask as coding  # late: only polygons need it

    merged = coding.merge(coding.frPyObjects(segmentation, height, width))
    return _region({"size": [height, width], "counts": merged["counts"].decode()}, size, where)


def _decompress(text: str) -> list[int]:
    """COCO's compressed run lengths; empty where it is none.

    Six bits a character, from "0" on: five of the number, low ones first and signed, and one that says that it goes
    on. From the fourth on, numbers are differences from the run two before. pycocotools reads strings that are too
    short as well, and then hands out memory as it finds it.
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


def _finite(values, count: int | None = None) -> bool:
    numbers = isinstance(values, list) and all(type(v) in (int, float) and math.isfinite(v) for v in values)
    return numbers and count in (None, len(values))
