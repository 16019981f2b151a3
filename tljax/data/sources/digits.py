"""scikit-learn's handwritten digits, which need no file."""

from __future__ import annotations

import functools

import numpy as np

from tljax.config import DataConfig
from tljax.data.dataset import RawDataset, Split
from tljax.data.sources.options import NoOptions, parse_options
from tljax.data.splits import stratified_sample
from tljax.errors import UserError


def load(config: DataConfig, task: str) -> RawDataset:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey, 0..16 rescaled to 0..255; a fixed quarter is test."""
    parse_options(config, NoOptions)
    if config.path is not None:
        raise UserError("data.path has no meaning for data.name='digits', which is built in.")
    return _digits()


@functools.cache
def _digits() -> RawDataset:
    # Imported late: it costs a second that other sources need not pay.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    everything = Split(images, bunch.target.astype(np.int32))
    test, train = stratified_sample(everything.labels, lambda count: round(count / 4), key="digits test")
    return RawDataset(everything.select(train), everything.select(test), tuple(map(str, range(10))))
