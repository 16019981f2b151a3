"""Datasets of uint8 images: labeled train, validation and held-out test splits, and unlabeled images."""

from tljax.config import DataConfig
from tljax.data.dataset import DataSplits, HeldOutSplit, RawDataset, Split, UnlabelledImages
from tljax.data.labeled_files import LabeledFiles, make_dataset
from tljax.data.resize import InputSpec, make_image_format, resize_dataset
from tljax.data.sources import registry
from tljax.data.splits import make_splits

__all__ = ["DataSplits", "HeldOutSplit", "LabeledFiles", "RawDataset", "Split", "UnlabelledImages", "load"]


def load(
    config: DataConfig, seed: int, task: str = "classification", network_input: InputSpec | None = None
) -> DataSplits:
    """Load a data source with the labels that a task needs, and split it.

    Args:
      config: the data section of the config.
      seed: selects the labeled and the unlabeled training images.
      task: "classification", "segmentation" or "detection".
      network_input: what the network expects of images, such as the `Preprocess` of its weights; for image files of any
        size, and where `config.resize` is set.
    """
    return prepare_splits(registry.load_source(config, task), config, seed, network_input)


def prepare_splits(
    source: RawDataset | LabeledFiles, config: DataConfig, seed: int, network_input: InputSpec | None = None
) -> DataSplits:
    """Return the splits of a loaded source, whose image files are decoded.

    Args:
      source: from `registry.load_source`.
      config: as of `load`.
      seed: as of `load`.
      network_input: as of `load`.
    """
    if isinstance(source, LabeledFiles):
        dataset = make_dataset(source, make_image_format(config, config.resize or "crop", network_input), config)
    else:
        dataset = resize_dataset(source, config, network_input)
    return make_splits(dataset, config, seed)
