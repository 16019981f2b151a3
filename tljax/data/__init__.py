"""Data: train, valid and a sealed test split of uint8 pictures with labels, and pictures without."""

from tljax.config import DataConfig
from tljax.data.dataset import DataSplits, HeldOutSplit, RawDataset, Split, UnlabelledImages
from tljax.data.sources import registry
from tljax.data.splits import make_splits

__all__ = ["DataSplits", "HeldOutSplit", "RawDataset", "Split", "UnlabelledImages", "load"]


def load(config: DataConfig, seed: int, task: str = "classification") -> DataSplits:
    """Reads the source, with what the task wants of it, and cuts it into splits.

    Args:
      config: of the data.
      seed: draws the labelled training pictures.
      task: "classification", "segmentation" or "detection".
    """
    return make_splits(registry.load_source(config, task), config, seed)
