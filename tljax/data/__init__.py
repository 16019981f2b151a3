"""Datasets of uint8 images: labeled train, validation and held-out test splits, and unlabeled images."""

from tljax.config import DataConfig
from tljax.data.dataset import DataSplits, HeldOutSplit, RawDataset, Split, UnlabelledImages
from tljax.data.sources import registry
from tljax.data.splits import make_splits

__all__ = ["DataSplits", "HeldOutSplit", "RawDataset", "Split", "UnlabelledImages", "load"]


def load(config: DataConfig, seed: int, task: str = "classification") -> DataSplits:
    """Load a data source with the labels that a task needs, and split it.

    Args:
      config: the data section of the config.
      seed: selects the labeled and the unlabeled training images.
      task: "classification", "segmentation" or "detection".
    """
    return make_splits(registry.load_source(config, task), config, seed)
