"""Data: train, valid and a sealed test split of uint8 pictures with labels, and pictures without."""

from tljax.config import DataConfig
from tljax.data import sources
from tljax.data.splits import make_data
from tljax.data.types import Data, SealedSplit, Source, Split, Unlabelled

__all__ = ["Data", "SealedSplit", "Source", "Split", "Unlabelled", "load"]


def load(config: DataConfig, seed: int, task: str = "classification", on_bad_file: str = "error") -> Data:
    """Reads the source, with what the task wants of it, and cuts it into splits.

    Args:
      config: of the data.
      seed: draws the labelled training pictures.
      task: "classification", "segmentation" or "detection".
      on_bad_file: "error" or "skip".
    """
    return make_data(sources.load(config, task, on_bad_file), config, seed)
