"""The data sources by name, and how one of the user's own is found."""

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
      load: (config, task) → the data set, with the labels [N], masks or boxes that the task trains on.
      tasks: names of the tasks that it has labels for; empty: any, `load` decides.
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
    """Load the source that `config.name` names, with the labels that a task trains on.

    Args:
      config: of the data; `name` is a row of `SOURCES`, or `FILE.py:NAME` of a function like `Source.load`.
      task: "classification": labels [N]; "segmentation": masks [N, H, W]; "detection": boxes.

    Raises:
      UserError: no such source, with the nearest name, or none that fits the task; what the source raises.
    """
    if plugins.is_plugin(config.name):
        return _load_plugin(config, task)
    name = "tfds:NAME" if config.name.startswith("tfds:") else config.name
    if name not in SOURCES:
        raise UserError(f'There is no data.name "{name}"{did_you_mean(name, SOURCES)}')
    source = SOURCES[name]
    if task not in source.tasks:
        fitting = ", ".join(row for row in SOURCES if task in SOURCES[row].tasks)
        raise UserError(f'data.name="{name}" has nothing for the task {task}; what has: {fitting}.')
    return source.load(config, task)


def _load_plugin(config: DataConfig, task: str) -> RawDataset:
    load = plugins.load_plugin(config.name, "data source")
    if not callable(load):
        raise UserError(f"{config.name} is no data source: it must be a function, got {type(load).__name__}.")
    dataset = load(config, task)
    if not isinstance(dataset, RawDataset):
        raise UserError(f"{config.name} must return a tljax.data.RawDataset, got {type(dataset).__name__}.")
    return dataset
