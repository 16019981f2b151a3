"""Data sets by name, and which of them have masks or boxes."""

from __future__ import annotations

import numpy as np

from tljax.config import DataConfig
from tljax.data.dataset import Source, Split
from tljax.data.sources import coco, digits, idx, mask_folders, options, synthetic_scenes, tfds, voc, yolo
from tljax.data.sources.images import resize as resize_picture
from tljax.errors import UserError, nearest


def load(config: DataConfig, task: str = "classification", on_bad_file: str = "error") -> Source:
    """Reads the source that `config.name` names, with what a task learns from.

    Args:
      config: of the data.
      task: "classification": labels [N]; "segmentation": masks; "detection": boxes.
      on_bad_file: what becomes of a picture with masks or boxes that cannot be used: "error", or "skip", which leaves
        it out and names its file in `Source.skipped`.

    Raises:
      UserError: no such source, with the nearest name, or none that fits the task; what the source raises.
    """
    known = {name: reader for by_name in SOURCES.values() for name, reader in by_name.items()}
    name = "tfds:NAME" if config.name.startswith("tfds:") else config.name
    if name not in known:
        raise UserError(f'There is no data.name "{name}"{nearest(name, known)}')
    if name not in SOURCES[task]:
        raise UserError(f'data.name="{name}" has nothing for the task {task}; what has: {", ".join(SOURCES[task])}.')
    if task == "classification":
        options.read(config, options.NoOptions)
        return SOURCES[task][name](config)
    return SOURCES[task][name](config, task, on_bad_file)


def tfds_source(config: DataConfig) -> Source:
    """A prepared TensorFlow Datasets set, read through its random-access data source, without TensorFlow.

    Its features need `image` and `label`. Where there is no split `test`, `validation` serves as the test split.
    Pictures of unequal size are brought to `data.image_size`.
    """
    features, rows = tfds.open_set(config)
    if not {"image", "label"} <= set(features):
        raise UserError(f"{config.name} has no image and label; it has {list(features)}.")
    splits = {split: _collect(rows[split], config) for split in ("train", "test")}
    return Source(**splits, classes=tfds.label_names(features["label"]))


def _collect(rows, config: DataConfig) -> Split:
    images, labels, size = [], [], config.image_size
    for row in rows:
        images.append(np.atleast_3d(np.asarray(row["image"], np.uint8)))
        labels.append(int(row["label"]))
    if len({i.shape for i in images}) > 1:
        if size is None:
            raise UserError(f"The pictures of {config.name} differ in size: set data.image_size.")
        images = [resize_picture(i, (size, size)) for i in images]
    return Split(np.stack(images), np.asarray(labels, np.int32))


_MASKS = {"scenes": synthetic_scenes.source, "coco": coco.source, "voc": voc.source, "masks": mask_folders.source}
_BOXES = {"scenes": synthetic_scenes.source, "coco": coco.source, "voc": voc.source, "yolo": yolo.source}
SOURCES = {
    "classification": {
        "digits": digits.source,
        "idx": idx.source,
        "fashion-mnist": idx.fashion_source,
        "tfds:NAME": tfds_source,
    },
    "segmentation": _MASKS | {"tfds:NAME": tfds.source},
    "detection": _BOXES | {"tfds:NAME": tfds.source},
}
