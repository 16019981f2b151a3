"""YOLO text files: PATH/{images,labels}/{train,val,test}/NAME.*, with a line `class cx cy w h` for each box."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from pathlib import Path

from tljax.config import DataConfig
from tljax.config.fields import field
from tljax.data.dataset import RawDataset
from tljax.data.sources import options as source_options
from tljax.data.sources.images import read_image
from tljax.data.sources.mask_folders import files_by_stem
from tljax.data.sources.records import Example, ImageRecord, data_root, make_objects, read_records, read_text
from tljax.errors import UserError

_TOLERANCE = 0.01  # rounding can put boxes at the edge slightly outside 0..1


@dataclasses.dataclass(frozen=True)
class Options:
    """Class names."""

    classes: tuple[str, ...] = field((), "names of the classes 0, 1, ...; empty: from data.yaml or classes.txt in PATH")


def load(config: DataConfig, task: str) -> RawDataset:
    """Load boxes; an image without a text file has none.

    With a folder `test`, `val` is the validation split; without it, `val` is the test split.

    Args:
      config: the data section of the config.
      task: "detection".

    Raises:
      UserError: there are no class names, or `read_records` fails.
    """
    options = source_options.parse_options(config, Options)
    root = data_root(config)
    classes = options.classes or _read_class_names(root)
    exists = {name: (root / "images" / name).is_dir() for name in ("val", "test")}
    folders = {"train": "train", "test": "test" if exists["test"] or not exists["val"] else "val"}
    if all(exists.values()):
        folders["valid"] = "val"
    records = {}
    for split, name in folders.items():
        images = files_by_stem(root / "images" / name)
        labels = root / "labels" / name
        if not labels.is_dir():
            raise UserError(f"There is no folder {labels}.")
        without_image = sorted(p for p in labels.glob("*.txt") if p.stem not in images and p.name != "classes.txt")
        records[split] = [
            *(
                ImageRecord(str(file), functools.partial(_read_example, file, labels / f"{stem}.txt", classes))
                for stem, file in images.items()
            ),
            *(ImageRecord(str(path), functools.partial(_raise_missing_image, path)) for path in without_image),
        ]
    return read_records(records, classes, config)


def _raise_missing_image(path: Path) -> Example:
    raise UserError(f"There is no image for {path}.")


def _read_example(file: Path, path: Path, classes: tuple[str, ...]) -> Example:
    image = read_image(file)
    height, width = image.shape[:2]
    boxes, labels = [], []
    lines = read_text(path).splitlines() if path.exists() else []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        label, cx, cy, w, h = _parse_line(line, f"{path}, line {number},", len(classes))
        boxes.append([(cy - h / 2) * height, (cx - w / 2) * width, (cy + h / 2) * height, (cx + w / 2) * width])
        labels.append(label)
    return Example(image, make_objects(image, boxes, labels))


def _parse_line(line: str, origin: str, num_classes: int) -> tuple[int, float, float, float, float]:
    words = line.split()
    try:
        label = int(words[0])
        numbers = [float(word) for word in words[1:]]
    except ValueError:
        label, numbers = 0, []
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise UserError(f"{origin} is not an integer and four finite numbers, class cx cy w h: {line.strip()[:80]!r}.")
    if not 0 <= label < num_classes:
        raise UserError(f"{origin} has the class {label}, but there are names for 0..{num_classes - 1}.")
    if min(numbers[:2]) < -_TOLERANCE or max(numbers) > 1 + _TOLERANCE:
        raise UserError(f"{origin} must have numbers in 0..1, relative to the image's sides: {line.strip()[:80]!r}.")
    cx, cy, w, h = numbers
    return label, cx, cy, w, h


def _read_class_names(root: Path) -> tuple[str, ...]:
    """Return the `names` of data.yaml, in any form that YOLO tools write, else the lines of classes.txt."""
    text = {name: read_text(root / name) for name in ("data.yaml", "classes.txt") if (root / name).is_file()}
    if "data.yaml" in text:
        names = _yaml_names(text["data.yaml"])
    else:
        names = [line.strip() for line in text.get("classes.txt", "").splitlines() if line.strip()]
    if not names:
        raise UserError(f"{root} has no class names: set data.options.classes.")
    return tuple(names)


def _yaml_names(text: str) -> list[str]:
    """Return the list or mapping `names` of a YAML file; empty if it is missing or has other forms."""
    lines = [re.sub(r"(^|\s)#.*", "", line).rstrip() for line in text.splitlines()]
    start = next((i for i, line in enumerate(lines) if re.match(r"names\s*:", line)), None)
    if start is None:
        return []
    body = [lines[start].split(":", 1)[1].strip()]
    for line in lines[start + 1 :]:
        if line and not line.startswith((" ", "-", "]", "}")):
            break  # the next key
        body.append(line.strip())
    flow = " ".join(body).strip()  # YAML flow style: [a, b] or {0: a, 1: b}
    if flow.startswith(("[", "{")):
        parts = re.findall(r"""(?:[^,"']|"[^"]*"|'[^']*')+""", flow.strip("[]{} "))
        body = [part.strip() if flow.startswith("{") else f"- {part.strip()}" for part in parts if part.strip()]
    rows = [line for line in body if line]
    matches = [match for row in rows if (match := re.match(r"(?:-|(\d+)\s*:)\s*(.+)", row))]
    if len(matches) < len(rows):
        return []
    names = {int(m[1] or i): m[2].strip().strip("\"'") for i, m in enumerate(matches)}
    return [names[k] for k in sorted(names)] if sorted(names) == list(range(len(matches))) else []
