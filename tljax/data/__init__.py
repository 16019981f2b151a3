"""Data: train, valid and a sealed test split of uint8 pictures with labels, and pictures without."""

from tljax.config import DataConfig
from tljax.data.dataset import Data, HeldOutSplit, Source, Split, Unlabelled
from tljax.data.sources import registry
from tljax.data.splits import make_data

__all__ = ["Data", "HeldOutSplit", "Source", "Split", "Unlabelled", "load"]


def load(config: DataConfig, seed: int, task: str = "classification", on_bad_file: str = "error") -> Data:
    """Reads the source, with what the task wants of it, and cuts it into splits.

    Args:
      config: of the data.
      seed: draws the labelled training pictures.
      task: "classification", "segmentation" or "detection".
      on_bad_file: "error" or "skip".
    """
    return make_data(registry.load(config, task, on_bad_file), config, seed)
