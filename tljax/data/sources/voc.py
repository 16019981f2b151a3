"""Pascal VOC (Everingham et al. 2010): an XML file of boxes or a palette PNG of classes for each image."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from xml.etree import ElementTree

from tljax.config import DataConfig
from tljax.config.fields import field
from tljax.data.dataset import RawDataset
from tljax.data.sources import options as source_options
from tljax.data.sources.images import check_mask, read_image, read_mask
from tljax.data.sources.records import Example, ImageRecord, data_root, make_objects, read_records, read_text
from tljax.errors import UserError, did_you_mean

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Lists of ImageSets/Main (boxes) or ImageSets/Segmentation (masks) that define the splits."""

    train: str = field("train", "list of training images")
    valid: str | None = field(None, "list of validation images; None: they are held out of train")
    test: str = field("val", "list of test images")


def load(config: DataConfig, task: str) -> RawDataset:
    """Load boxes, difficult ones marked as crowds, or masks with class 0 for background and 255 ignored.

    Args:
      config: the data section of the config.
      task: "segmentation" or "detection".

    Raises:
      UserError: a list does not exist, or `read_records` fails.
    """
    options = source_options.parse_options(config, Options)
    root = _year_folder(data_root(config))
    kind, read = ("Segmentation", _read_with_mask) if task == "segmentation" else ("Main", _read_with_boxes)
    records = {}
    for split in ("train", "valid", "test"):
        name = getattr(options, split)
        if name is None:
            continue
        list_file = root / "ImageSets" / kind / f"{name}.txt"
        if not list_file.is_file():
            available = sorted(p.stem for p in list_file.parent.glob("*.txt"))
            raise UserError(f"data.options.{split}: there is no list {list_file}{did_you_mean(name, available)}")
        # Lists for a single class have a second column.
        stems = [line.split()[0] for line in read_text(list_file).splitlines() if line.strip()]
        files = [(stem, root / "JPEGImages" / f"{stem}.jpg") for stem in stems]
        records[split] = [ImageRecord(str(file), functools.partial(read, root, stem, file)) for stem, file in files]
    classes = ("background", *CLASSES) if task == "segmentation" else CLASSES
    return read_records(records, classes, config)


def _year_folder(root: Path) -> Path:
    """Return `data.path` itself, or the only folder of a year in it."""
    for parent in (root, root / "VOCdevkit"):
        years = [parent] if (parent / "ImageSets").is_dir() else sorted(parent.glob("VOC[0-9]*"))
        if len(years) == 1:
            return years[0]
        if years:
            raise UserError(f"{parent} has {', '.join(y.name for y in years)}: set data.path to one of them.")
    raise UserError(f"{root} has neither ImageSets nor a folder such as VOC2007.")


def _read_with_mask(root: Path, stem: str, file: Path) -> Example:
    image = read_image(file)
    path = root / "SegmentationClass" / f"{stem}.png"
    return Example(image, check_mask(read_mask(path), image, 1 + len(CLASSES), str(path)))


def _read_with_boxes(root: Path, stem: str, file: Path) -> Example:
    image = read_image(file)
    path = root / "Annotations" / f"{stem}.xml"
    boxes, labels, difficult = [], [], []
    for element in _parse_xml(path).iter("object"):
        name = (element.findtext("name") or "").strip()
        if name not in CLASSES:
            raise UserError(f'{path} has an object of the unknown class "{name}"{did_you_mean(name, CLASSES)}')
        x0, y0, x1, y1 = (_parse_number(element, f"bndbox/{side}", path) for side in ("xmin", "ymin", "xmax", "ymax"))
        # VOC counts pixels from 1, and the last pixel belongs to the box.
        boxes.append([y0 - 1, x0 - 1, y1, x1])
        labels.append(CLASSES.index(name))
        difficult.append((element.findtext("difficult") or "0").strip() == "1")
    return Example(image, make_objects(image, boxes, labels, difficult))


def _parse_xml(path: Path) -> ElementTree.Element:
    try:
        raw = path.read_bytes()
        # Nested entities can expand without bound, and only a document type declares entities. UTF-16, which has zero
        # bytes, would hide it from this search.
        if b"<!DOCTYPE" in raw or b"\0" in raw:
            raise UserError(f"{path} has a document type or is not UTF-8, which is not supported.")
        return ElementTree.fromstring(raw)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise UserError(f"{path} is not XML: {error}.") from error


def _parse_number(element: ElementTree.Element, tag: str, path: Path) -> float:
    text = element.findtext(tag)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{path} has an object whose {tag} is {text!r}, not a finite number.")
    return value
