"""Pascal VOC (Everingham et al. 2010): an XML file of boxes or a palette PNG of classes for each picture."""

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
from tljax.data.sources.records import Example, ImageRecord, data_root, objects, read_records, read_text
from tljax.errors import UserError, did_you_mean

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Which lists of ImageSets/Main (boxes) or ImageSets/Segmentation (masks) the splits are."""

    train: str = field("train", "list of training pictures")
    valid: str | None = field(None, "list of validation pictures; None: they are held out of train")
    test: str = field("val", "list of test pictures")


def load(config: DataConfig, task: str) -> RawDataset:
    """Boxes, difficult ones as crowds, or masks, class 0 background and 255 ignored.

    Raises:
      UserError: no such list; and what `collect` raises.
    """
    options, root = source_options.parse_options(config, Options), _year(data_root(config))
    kind, read = ("Segmentation", _masked) if task == "segmentation" else ("Main", _boxed)
    entries = {}
    for split in ("train", "valid", "test"):
        name = getattr(options, split)
        if name is None:
            continue
        listed = root / "ImageSets" / kind / f"{name}.txt"
        if not listed.is_file():
            known = sorted(p.stem for p in listed.parent.glob("*.txt"))
            raise UserError(f"data.options.{split}: there is no list {listed}{did_you_mean(name, known)}")
        # Lists of a single class have a second column.
        stems = [line.split()[0] for line in read_text(listed).splitlines() if line.strip()]
        files = [(stem, root / "JPEGImages" / f"{stem}.jpg") for stem in stems]
        entries[split] = [ImageRecord(str(file), functools.partial(read, root, stem, file)) for stem, file in files]
    names = ("background", *CLASSES) if task == "segmentation" else CLASSES
    return read_records(entries, names, config)


def _year(root: Path) -> Path:
    """`data.path` itself, or the only year's folder in it."""
    for parent in (root, root / "VOCdevkit"):
        years = [parent] if (parent / "ImageSets").is_dir() else sorted(parent.glob("VOC[0-9]*"))
        if len(years) == 1:
            return years[0]
        if years:
            raise UserError(f"{parent} has {', '.join(y.name for y in years)}: give one of these as data.path.")
    raise UserError(f"{root} has neither ImageSets nor a folder VOC2007, VOC2012, ...")


def _masked(root: Path, stem: str, file: Path) -> Example:
    image, path = read_image(file), root / "SegmentationClass" / f"{stem}.png"
    return Example(image, check_mask(read_mask(path), image, 1 + len(CLASSES), str(path)))


def _boxed(root: Path, stem: str, file: Path) -> Example:
    image, path = read_image(file), root / "Annotations" / f"{stem}.xml"
    boxes, labels, difficult = [], [], []
    for element in _tree(path).iter("object"):
        name = (element.findtext("name") or "").strip()
        if name not in CLASSES:
            raise UserError(f'{path} has an object of the unknown class "{name}"{did_you_mean(name, CLASSES)}')
        x0, y0, x1, y1 = (_number(element, f"bndbox/{side}", path) for side in ("xmin", "ymin", "xmax", "ymax"))
        # Pixels count from 1 there, and the last ones belong to the box.
        boxes.append([y0 - 1, x0 - 1, y1, x1])
        labels.append(CLASSES.index(name))
        difficult.append((element.findtext("difficult") or "0").strip() == "1")
    return Example(image, objects(image, boxes, labels, difficult))


def _tree(path: Path) -> ElementTree.Element:
    try:
        raw = path.read_bytes()
        # Entities can grow without bound, and only a document type declares any; a zero byte is UTF-16, which hides it.
        if b"<!DOCTYPE" in raw or b"\0" in raw:
            raise UserError(f"{path} has a document type or is not UTF-8: it is not read.")
        return ElementTree.fromstring(raw)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise UserError(f"{path} is not XML: {error}.") from error


def _number(element: ElementTree.Element, tag: str, path: Path) -> float:
    text = element.findtext(tag)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{path} has an object whose {tag} is {text!r}, not a finite number.")
    return value
