"""Which square images a run stores, by the config and what the pretrained weights expect."""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol

import numpy as np

from tljax.config import DataConfig
from tljax.data.dataset import RawDataset, Split
from tljax.data.sources.images import ImageFormat
from tljax.errors import UserError


class InputSpec(Protocol):
    """What a network expects of its images; `tljax.weights.Preprocess` is one.

    Attributes:
      size: height and width of the input, in pixels; None: any.
      crop: share of the resized image's shorter side that the input shows.
      interpolation: "bilinear" or "bicubic".
    """

    @property
    def size(self) -> int | None: ...

    @property
    def crop(self) -> float: ...

    @property
    def interpolation(self) -> str: ...


def make_image_format(config: DataConfig, resize: str, network_input: InputSpec | None) -> ImageFormat:
    """Return the format of the stored images.

    With "crop", stored images show all of the shorter side, so that random crops can be taken from them; the network
    reads their center (`Preprocess.center_crop`). Their side is the size of the input over the crop share, rounded up.

    Args:
      config: the data section of the config.
      resize: "crop", "pad" or "stretch".
      network_input: of the network; None: bilinear, without a crop.

    Raises:
      UserError: the size is unknown, or `data.store_size` is smaller.
    """
    size = config.image_size or (network_input.size if network_input else None)
    if size is None:
        raise UserError(
            f"data.name={config.name!r} needs data.image_size, the side of the network input in pixels, because "
            "model.weights gives none."
        )
    crop = network_input.crop if network_input and resize == "crop" else 1.0
    side = config.store_size or math.ceil(size / crop - 1e-6)
    if side < size:
        raise UserError(f"data.store_size={side} is smaller than the network input of {size} pixels.")
    interpolation = network_input.interpolation if network_input else "bilinear"
    return ImageFormat(side, resize, interpolation, config.background)


def resize_dataset(source: RawDataset, config: DataConfig, network_input: InputSpec | None) -> RawDataset:
    """Return a dataset whose images are cropped or padded to squares, if the config asks for it.

    Args:
      source: images of one size.
      config: the data section of the config.
      network_input: of the network; None: bilinear, without a crop.

    Raises:
      UserError: a field has no effect, or the dataset has masks or boxes.
    """
    if config.test_fraction is not None:
        raise UserError(f"data.test_fraction has no effect: data.name={config.name!r} has its own test split.")
    if config.resize in (None, "stretch"):
        for name in ("store_size", "background"):
            if getattr(config, name) != getattr(DataConfig(), name):
                raise UserError(f"data.{name} has no effect for data.name={config.name!r} unless data.resize is set.")
        return source
    if source.train.labels.ndim != 1:
        raise UserError(f"data.resize={config.resize!r} is for classification: masks and boxes are stretched.")
    image_format = make_image_format(config, config.resize, network_input)

    def fit(split: Split) -> Split:
        return dataclasses.replace(split, images=np.stack([image_format.fit(image) for image in split.images[:]]))

    valid = None if source.valid is None else fit(source.valid)
    return dataclasses.replace(
        source, train=fit(source.train), test=fit(source.test), valid=valid, resize=config.resize
    )
