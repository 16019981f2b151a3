"""Data: train, valid and a sealed test split of uint8 pictures with labels."""

from tljax.config import DataConfig
from tljax.data import sources
from tljax.data.splits import make_data
from tljax.data.types import Data, SealedSplit, Source, Split

__all__ = ["Data", "SealedSplit", "Source", "Split", "load"]


def load(config: DataConfig, seed: int) -> Data:
    """Reads the source and cuts it into splits; `seed` draws the labelled training pictures."""
    return make_data(sources.load(config), config, seed)
