"""The table of data sources, and loading of custom ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tljax import plugins
from tljax.config import DataConfig
from tljax.data.dataset import RawDataset
from tljax.data.sources import coco, digits, idx, mask_folders, synthetic_scenes, tfds, voc, yolo
from tljax.errors import UserError, did_you_mean


class Source(NamedTuple):
    """A row of `SOURCES`.

    Attributes:
      load: function (config, task) that returns the dataset with the labels, masks or boxes of the task.
      tasks: tasks that the source has labels for.
    """

    load: Callable[[DataConfig, str], RawDataset]
    tasks: tuple[str, ...] = ()


SOURCES = {
    "digits": Source(digits.load, ("classification",)),
    "idx": Source(idx.load, ("classification",)),
    "fashion-mnist": Source(idx.load_fashion, ("classification",)),
    "scenes": Source(synthetic_scenes.load, ("segmentation", "detection")),
    "coco": Source(coco.load, ("segmentation", "detection")),
    "voc": Source(voc.load, ("segmentation", "detection")),
    "masks": Source(mask_folders.load, ("segmentation",)),
    "yolo": Source(yolo.load, ("detection",)),
    "tfds:NAME": Source(tfds.load, ("classification", "segmentation", "detection")),
}


def load_source(config: DataConfig, task: str = "classification") -> RawDataset:
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
        raise UserError(f'data.name="{name}" has no labels for the task {task}; sources that have: {suitable}.')
    return source.load(config, task)


def _load_plugin(config: DataConfig, task: str) -> RawDataset:
    load = plugins.load_plugin(config.name, "data source")
    if not callable(load):
        raise UserError(f"{config.name} is not a data source: it must be a function, got {type(load).__name__}.")
    dataset = load(config, task)
    if not isinstance(dataset, RawDataset):
        raise UserError(f"{config.name} must return a tljax.data.RawDataset, got {type(dataset).__name__}.")
    return dataset
