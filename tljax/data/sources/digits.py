"""The handwritten digits of scikit-learn, which need no files."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from tljax.config import DataConfig
from tljax.data.dataset import RawDataset, Split
from tljax.data.sources.options import NoOptions, parse_options
from tljax.data.splits import stratified_sample
from tljax.errors import UserError


def load(config: DataConfig, task: str) -> RawDataset:
    """Load 1,797 grayscale digits of 8x8 pixels, rescaled from 0..16 to 0..255; a fixed quarter is the test split.

    Args:
      config: the data section of the config.
      task: "classification".
    """
    parse_options(config, NoOptions)
    if config.path is not None:
        raise UserError("data.path cannot be set for data.name='digits', which is built in.")
    return _digits()


@functools.cache
def _digits() -> RawDataset:
    # Imported late: the import takes a second that other sources need not spend.
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    all_digits = Split(images, bunch.target.astype(np.int32))
    test, train = stratified_sample(all_digits.labels, lambda count: round(count / 4), key="digits test")
    return RawDataset(all_digits.select(train), all_digits.select(test), tuple(map(str, range(10))))
