"""Data: train, valid and a sealed test split of uint8 pictures with labels, and pictures without."""

from tljax.config import DataConfig
from tljax.data import sources
from tljax.data.splits import make_data
from tljax.data.types import Data, SealedSplit, Source, Split, Unlabelled

__all__ = ["Data", "SealedSplit", "Source", "Split", "Unlabelled", "load"]


def load(config: DataConfig, seed: int) -> Data:
    """Reads the source and cuts it into splits; `seed` draws the labelled training pictures."""
    return make_data(sources.load(config), config, seed)
