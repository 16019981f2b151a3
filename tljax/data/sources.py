"""Data sets by name: scikit-learn's digits, IDX folders, and prepared TensorFlow Datasets."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import numpy as np

from tljax.config import DataConfig
from tljax.data import idx
from tljax.data.splits import per_class
from tljax.data.types import Source, Split
from tljax.errors import UserError, nearest

FASHION_CLASSES = (
    "t-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


def load(config: DataConfig) -> Source:
    """Reads the source that `config.name` names. Raises UserError with the nearest name."""
    if config.name.startswith("tfds:"):
        return tfds_source(config.name.removeprefix("tfds:"), config.path, config.image_size)
    sources = {"digits": digits_source, "idx": idx_source, "fashion-mnist": fashion_source}
    if config.name not in sources:
        raise UserError(f'There is no data.name "{config.name}"{nearest(config.name, [*sources, "tfds:NAME"])}')
    return sources[config.name](config)


def digits_source(config: DataConfig) -> Source:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey, 0..16 rescaled to 0..255; a fixed quarter is test."""
    if config.path is not None:
        raise UserError("data.path has no meaning for data.name='digits', which is built in.")
    return _digits()


@functools.cache
def _digits() -> Source:
    # Imported late: it costs a second that other sources need not pay.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    everything = Split(images, bunch.target.astype(np.int32))
    test, train = per_class(everything.labels, lambda count: round(count / 4), key="digits test")
    return Source(everything.take(train), everything.take(test), tuple(map(str, range(10))))


def idx_source(config: DataConfig) -> Source:
    """MNIST-format files in `data.path`."""
    if config.path is None:
        raise UserError("data.name='idx' needs data.path, the folder of the four IDX files.")
    return idx.read_source(Path(config.path))


def fashion_source(config: DataConfig) -> Source:
    """Fashion-MNIST (Xiao et al. 2017) in `data.path`, else in `$TLJAX_DATA_DIR/fashion-mnist`."""
    if config.path is None and "TLJAX_DATA_DIR" not in os.environ:
        raise UserError(
            "data.name='fashion-mnist' needs data.path, or TLJAX_DATA_DIR as the folder that has fashion-mnist/."
        )
    folder = Path(config.path) if config.path else Path(os.environ["TLJAX_DATA_DIR"]) / "fashion-mnist"
    return idx.read_source(folder, FASHION_CLASSES)


def tfds_source(name: str, data_dir: str | None, size: int | None) -> Source:
    """A prepared TensorFlow Datasets set, read through its random-access data source, without TensorFlow.

    Its features need `image` and `label`. Where there is no split `test`, `validation` serves as the test split.

    Args:
      name: as `tfds.builder` takes it, e.g. "cifar10" or "my_set/config:1.0.0".
      data_dir: the folder of prepared sets; None: TFDS's own default.
      size: side to which pictures of unequal size are brought, in pixels.
    """
    import tensorflow_datasets as tfds  # late: two seconds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
        splits = dict(builder.info.splits)
        test = next((s for s in ("test", "validation") if s in splits), None)
        if "train" not in splits or test is None:
            raise UserError(f"tfds:{name} needs splits train and test or validation; it has {list(splits)}.")
        arrays = {s: builder.as_data_source(split=s) for s in ("train", test)}
    except (tfds.core.DatasetNotFoundError, ValueError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"tfds:{name} cannot be read from {data_dir or 'the default data_dir'}: {reason} "
            "Prepare it with download_and_prepare(file_format='array_record')."
        ) from error
    features = dict(builder.info.features.items())
    if not {"image", "label"} <= set(features):
        raise UserError(f"tfds:{name} has no image and label; it has {list(features)}.")
    label = features["label"]
    names = tuple(label.names) if label.names else tuple(map(str, range(label.num_classes)))
    return Source(_collect(arrays["train"], name, size), _collect(arrays[test], name, size), names)


def _collect(rows, name: str, size: int | None) -> Split:
    images, labels = [], []
    for row in rows:
        images.append(np.atleast_3d(np.asarray(row["image"], np.uint8)))
        labels.append(int(row["label"]))
    if len({i.shape for i in images}) > 1:
        if size is None:
            raise UserError(f"The pictures of tfds:{name} differ in size: set data.image_size.")
        images = [resize_picture(i, (size, size)) for i in images]
    return Split(np.stack(images), np.asarray(labels, np.int32))


def resize_picture(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """One uint8 picture [H, W, C] brought to `size`, (height, width), by PIL's antialiased bilinear filter."""
    from PIL import Image

    grey = image.shape[-1] == 1
    picture = Image.fromarray(image[..., 0] if grey else image)
    return np.atleast_3d(np.asarray(picture.resize(size[::-1], Image.Resampling.BILINEAR)))
