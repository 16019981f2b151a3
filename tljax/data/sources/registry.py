"""The table of data sources, and loading of custom ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tljax import plugins
from tljax.config import DataConfig
from tljax.data.dataset import RawDataset, Split
from tljax.data.labeled_files import LabeledFiles
from tljax.data.sources import coco, digits, idx, image_folders, mask_folders, synthetic_scenes, tables, tfds, voc, yolo
from tljax.errors import UserError, did_you_mean


class Source(NamedTuple):
    """A row of `SOURCES`.

    Attributes:
      load_fn: function (config, task) that returns the dataset with the labels, masks or boxes of the task; or image
        files with one class each, which are decoded and split by `labeled_files.make_dataset`.
      tasks: tasks that the source has labels for.
    """

    load_fn: Callable[[DataConfig, str], RawDataset | LabeledFiles]
    tasks: tuple[str, ...] = ()


SOURCES = {
    "digits": Source(digits.load, ("classification",)),
    "idx": Source(idx.load, ("classification",)),
    "fashion-mnist": Source(idx.load_fashion, ("classification",)),
    "folder": Source(image_folders.load, ("classification",)),
    "csv": Source(tables.load, ("classification",)),
    "scenes": Source(synthetic_scenes.load, ("segmentation", "detection")),
    "coco": Source(coco.load, ("segmentation", "detection")),
    "voc": Source(voc.load, ("segmentation", "detection")),
    "masks": Source(mask_folders.load, ("segmentation",)),
    "yolo": Source(yolo.load, ("detection",)),
    "tfds:NAME": Source(tfds.load, ("classification", "segmentation", "detection")),
}


def load_source(config: DataConfig, task: str = "classification") -> RawDataset | LabeledFiles:
    """Load the data source `config.name` with the labels of a task.

    Args:
      config: the data section of the config; `name` is a row of `SOURCES`, or `FILE.py:NAME`, a function like
        `Source.load`.
      task: "classification": labels [N]; "segmentation": masks [N, H, W]; "detection": boxes.

    Raises:
      UserError: the source is unknown, has no labels for the task, or cannot be read.
    """
    if plugins.is_plugin(config.name):
        return _load_plugin(config, task)
    name = "tfds:NAME" if config.name.startswith("tfds:") else config.name
    if name not in SOURCES:
        raise UserError(f'There is no data.name "{name}"{did_you_mean(name, SOURCES)}')
    source = SOURCES[name]
    if task not in source.tasks:
        suitable = ", ".join(row for row in SOURCES if task in SOURCES[row].tasks)
        suitable = suitable or "none; the task can name a source_task, or use a source of the form FILE.py:NAME"
        raise UserError(f'data.name="{name}" has no labels for the task {task}; sources that have: {suitable}.')
    return source.load_fn(config, task)


def _load_plugin(config: DataConfig, task: str) -> RawDataset | LabeledFiles:
    load_fn = plugins.load_plugin(config.name, "data source")
    if not callable(load_fn):
        raise UserError(f"{config.name} is not a data source: it must be a function, got {type(load_fn).__name__}.")
    if not plugins.accepts(load_fn, config, task):
        raise UserError(f"{config.name} is not a data source: the function must take (config, task).")
    dataset = load_fn(config, task)
    if isinstance(dataset, LabeledFiles) and task == "classification":
        return dataset
    if not isinstance(dataset, RawDataset):
        raise UserError(f"{config.name} must return a tljax.data.RawDataset, got {type(dataset).__name__}.")
    for split in (dataset.train, dataset.test, dataset.valid):
        if split is not None and not _has_labels(split, task):
            raise UserError(f"{config.name} must return labels for the task {task}, got {_describe(split)}.")
    return dataset


def _has_labels(split: Split, task: str) -> bool:
    """Return whether a split has the labels of a built-in task; a custom task may have any."""
    expected = {"classification": (1, False), "segmentation": (3, False), "detection": (2, True)}
    return expected.get(task) in (None, (split.labels.ndim, split.boxes is not None))


def _describe(split: Split) -> str:
    return f"{split.labels.dtype}{list(split.labels.shape)} with{'' if split.boxes is not None else 'out'} boxes"
