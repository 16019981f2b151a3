"""YOLO's text files: PATH/{images,labels}/{train,valid,val,test}/NAME.*, a line `class cx cy w h` for each box."""

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
from tljax.data.sources.mask_folders import by_name
from tljax.data.sources.records import Example, ImageRecord, data_root, objects, read_records, read_text
from tljax.errors import UserError

SLACK = 0.01  # rounded shares of boxes at the edge may pass 1 by a little


@dataclasses.dataclass(frozen=True)
class Options:
    """What the classes are called."""

    classes: tuple[str, ...] = field((), "names of the classes 0, 1, ...; empty: from data.yaml or classes.txt in PATH")


def load(config: DataConfig, task: str) -> RawDataset:
    """Boxes; a picture without a text file has none.

    The test pictures are those of `test`, and `val` is then for validation; without `test`, those of `val` are.

    Raises:
      UserError: no names of classes; and what `collect` raises.
    """
    options, root = source_options.parse_options(config, Options), data_root(config)
    classes = options.classes or _names(root)
    has = {name: (root / "images" / name).is_dir() for name in ("val", "test")}
    folders = {"train": "train", "test": "test" if has["test"] or not has["val"] else "val"}
    if all(has.values()):
        folders["valid"] = "val"
    entries = {}
    for split, name in folders.items():
        pictures, labels = by_name(root / "images" / name), root / "labels" / name
        if not labels.is_dir():
            raise UserError(f"There is no folder {labels}.")
        lone = sorted(p for p in labels.glob("*.txt") if p.stem not in pictures and p.name != "classes.txt")
        entries[split] = [
            *(
                ImageRecord(str(file), functools.partial(_read, file, labels / f"{stem}.txt", classes))
                for stem, file in pictures.items()
            ),
            *(ImageRecord(str(path), functools.partial(_lone, path)) for path in lone),
        ]
    return read_records(entries, classes, config)


def _lone(path: Path) -> Example:
    raise UserError(f"There is no picture for {path}.")


def _read(file: Path, path: Path, classes: tuple[str, ...]) -> Example:
    image = read_image(file)
    height, width = image.shape[:2]
    boxes, labels = [], []
    lines = read_text(path).splitlines() if path.exists() else []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        label, cx, cy, w, h = _parse(line, f"{path}, line {number},", len(classes))
        boxes.append([(cy - h / 2) * height, (cx - w / 2) * width, (cy + h / 2) * height, (cx + w / 2) * width])
        labels.append(label)
    return Example(image, objects(image, boxes, labels))


def _parse(line: str, where: str, classes: int) -> tuple[int, float, float, float, float]:
    words = line.split()
    try:
        label, numbers = int(words[0]), [float(word) for word in words[1:]]
    except ValueError:
        label, numbers = 0, []
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise UserError(f"{where} is not a whole number and four finite ones, class cx cy w h: {line.strip()[:80]!r}.")
    if not 0 <= label < classes:
        raise UserError(f"{where} has the class {label}, but there are names for 0..{classes - 1}.")
    if min(numbers[:2]) < -SLACK or max(numbers) > 1 + SLACK:
        raise UserError(f"{where} must have shares of the picture's sides, 0..1: {line.strip()[:80]!r}.")
    return label, *numbers


def _names(root: Path) -> tuple[str, ...]:
    """The `names` of data.yaml, in any of the forms that YOLO's tools write, else the lines of classes.txt."""
    text = {name: read_text(root / name) for name in ("data.yaml", "classes.txt") if (root / name).is_file()}
    if "data.yaml" in text:
        names = _yaml_names(text["data.yaml"])
    else:
        names = [line.strip() for line in text.get("classes.txt", "").splitlines() if line.strip()]
    if not names:
        raise UserError(f"{root} has no names of classes: set data.options.classes.")
    return tuple(names)


def _yaml_names(text: str) -> list[str]:
    lines = [re.sub(r"(^|\s)#.*", "", line).rstrip() for line in text.splitlines()]
    start = next((i for i, line in enumerate(lines) if re.match(r"names\s*:", line)), None)
    if start is None:
        return []
    body = [lines[start].split(":", 1)[1].strip()]
    for line in lines[start + 1 :]:
        if line and not line.startswith((" ", "-", "]", "}")):
            break  # the next field
        body.append(line.strip())
    flow = " ".join(body).strip()
    if flow.startswith(("[", "{")):
        parts = re.findall(r"""(?:[^,"']|"[^"]*"|'[^']*')+""", flow.strip("[]{} "))
        body = [part.strip() if flow.startswith("{") else f"- {part.strip()}" for part in parts if part.strip()]
    found = [re.match(r"(?:-|(\d+)\s*:)\s*(.+)", line) for line in body if line]
    if not all(found):
        return []
    names = {int(m[1] or i): m[2].strip().strip("\"'") for i, m in enumerate(found)}
    return [names[k] for k in sorted(names)] if sorted(names) == list(range(len(found))) else []
