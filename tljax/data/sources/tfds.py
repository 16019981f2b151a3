"""Prepared TensorFlow Datasets sets with masks or boxes, whose fields are found by their types.

They are read through their random-access data source, without TensorFlow.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from PIL import Image

from tljax.config import DataConfig
from tljax.config.fields import field
from tljax.data.dataset import RawDataset, Split
from tljax.data.sources import options as source_options
from tljax.data.sources.images import IGNORED, as_array, check_mask, resize
from tljax.data.sources.records import Example, ImageRecord, objects, read_records
from tljax.errors import UserError, did_you_mean

# What the features of published sets do not say.
KNOWN = {
    "coco": {"test": "validation"},  # its test split has no annotations
    "oxford_iiit_pet": {"first": 1, "classes": ("pet", "background", "border")},
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Which fields and splits are meant, where their types leave it open."""

    image: str | None = field(None, "field of the picture; None: image, else the only one with more than one channel")
    mask: str | None = field(None, "field of the mask; None: the only picture of one channel")
    objects: str | None = field(None, "field of the boxes; None: the only sequence with boxes")
    classes: tuple[str, ...] = field((), "names of a mask's values; empty: as the field has it, else numbers")
    first: int = field(0, "the value of a mask that is class 0", ge=0, le=254)
    train: str = field("train", "split of training pictures")
    valid: str | None = field(None, "split of validation pictures; None: they are held out of train")
    test: str | None = field(None, "split of test pictures; None: test, else validation")


def open_set(config: DataConfig, options: Options = Options()):
    """The features {name: feature} of a set and its splits {"train": rows, "test": rows, perhaps "valid": rows}.

    `config.name` is "tfds:" and what `tfds.builder` takes, e.g. "cifar10" or "my_set/config:1.0.0"; `config.path` the
    folder of prepared sets, None for TFDS's own default.

    Raises:
      UserError: it is not prepared, or has no such splits.
    """
    import tensorflow_datasets as tfds  # late: two seconds

    name = config.name.removeprefix("tfds:")
    try:
        builder = tfds.builder(name, data_dir=config.path)
        has = dict(builder.info.splits)
        test = options.test or next((s for s in ("test", "validation") if s in has), None)
        splits = {"train": options.train, "valid": options.valid, "test": test}
        if options.train not in has or test not in has or options.valid not in (None, *has):
            wanted = f"{options.train} and {options.test or 'test or validation'}"
            raise UserError(f"{config.name} needs splits {wanted}; it has {list(has)}.")
        rows = {key: builder.as_data_source(split=split) for key, split in splits.items() if split}
    except (tfds.core.DatasetNotFoundError, ValueError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{config.name} cannot be read from {config.path or 'the default data_dir'}: {reason} "
            "Prepare it with download_and_prepare(file_format='array_record')."
        ) from error
    return dict(builder.info.features.items()), rows


def label_names(label) -> tuple[str, ...]:
    """The names of a feature with classes, else their numbers."""
    return tuple(label.names) if label.names else tuple(map(str, range(label.num_classes)))


def _load_labelled(config: DataConfig) -> RawDataset:
    """Images with labels.

    The features need `image` and `label`. Where there is no split `test`, `validation` serves as the test split.
    Images of unequal size are resized to `data.image_size`.
    """
    features, rows = open_set(config)
    if not {"image", "label"} <= set(features):
        raise UserError(f"{config.name} has no image and label; it has {list(features)}.")
    splits = {split: _read_labelled(rows[split], config) for split in ("train", "test")}
    return RawDataset(**splits, classes=label_names(features["label"]))


def _read_labelled(rows, config: DataConfig) -> Split:
    images, labels, size = [], [], config.image_size
    for row in rows:
        images.append(np.atleast_3d(np.asarray(row["image"], np.uint8)))
        labels.append(int(row["label"]))
    if len({image.shape for image in images}) > 1:
        if size is None:
            raise UserError(f"The images of {config.name} differ in size: set data.image_size.")
        images = [resize(image, (size, size)) for image in images]
    return Split(np.stack(images), np.asarray(labels, np.int32))


def load(config: DataConfig, task: str) -> RawDataset:
    """Labels, masks (255 ignored), or boxes; crowds are those that are marked as such or as difficult.

    Raises:
      UserError: no or several fields that may be meant, and what `open_set` and `read_records` raise.
    """
    if task == "classification":
        source_options.parse_options(config, source_options.NoOptions)
        return _load_labelled(config)
    known = KNOWN.get(config.name.removeprefix("tfds:").split("/")[0].split(":")[0], {})
    options = source_options.parse_options(dataclasses.replace(config, options={**known, **config.options}), Options)
    features, splits = open_set(config, options)
    image = _field(features, "image", options.image, config.name)
    if task == "segmentation":
        field = _field(features, "mask", options.mask, config.name)
        classes = options.classes or _mask_names(features[field])
        read = functools.partial(_masked, field=field, first=options.first, classes=len(classes) or None)
    else:
        field = _field(features, "objects", options.objects, config.name)
        parts = dict(features[field].feature.items())
        label = "label" if "label" in parts else _of_type(parts, "ClassLabel")[0]
        classes = label_names(parts[label])
        names = {"field": field, "box": _of_type(parts, "BBoxFeature")[0], "label": label}
        crowd = next((name for name in ("is_crowd", "is_difficult") if name in parts), None)
        read = functools.partial(_boxed, **names, crowd=crowd, classes=len(classes))
    entries = {
        split: [
            ImageRecord(where, functools.partial(_example, rows, i, image, read, where))
            for i in range(len(rows))
            for where in (f"{config.name}, row {i} of {split}",)
        ]
        for split, rows in splits.items()
    }
    made = read_records(entries, classes, config)
    if classes:
        return made
    splits = [s for s in (made.train, made.valid, made.test) if s is not None]
    most = max(int(s.labels[s.labels != IGNORED].max(initial=0)) for s in splits)
    return dataclasses.replace(made, classes=tuple(map(str, range(most + 1))))


def _field(features: dict, kind: str, given: str | None, name: str) -> str:
    """The field that is meant as "image", "mask" or "objects"."""
    if kind == "objects":
        sequences = {k: getattr(f, "feature", None) for k, f in features.items()}
        parts = {k: dict(f.items()) for k, f in sequences.items() if hasattr(f, "items")}
        found = [k for k, f in parts.items() if _of_type(f, "BBoxFeature") and _of_type(f, "ClassLabel")]
    else:
        images = _of_type(features, "Image")
        found = [k for k in images if (features[k].shape[-1] == 1) == (kind == "mask")]
        if kind == "image":
            found = ["image"] if "image" in images else found
            found = images if given else found  # it may well be grey
    if given is not None:
        if given not in found:
            raise UserError(f'data.options.{kind}: {name} has no such field "{given}"{did_you_mean(given, found)}')
        return given
    if len(found) != 1:
        which = f"several, {', '.join(found)}: choose with data.options.{kind}" if found else f"none: {list(features)}"
        raise UserError(f"{name} should have one field that may be {kind}, but it has {which}.")
    return found[0]


def _of_type(features: dict, kind: str) -> list[str]:
    """The names of the features of a class of TFDS's, or of one derived from it."""
    import tensorflow_datasets as tfds

    return [name for name, feature in features.items() if isinstance(feature, getattr(tfds.features, kind))]


def _mask_names(feature) -> tuple[str, ...]:
    return label_names(feature) if getattr(feature, "num_classes", None) else ()


def _example(rows, index: int, image: str, read, where: str) -> Example:
    try:
        row = rows[index]
    except (OSError, ValueError, TypeError, AttributeError, SyntaxError) as error:
        raise UserError(f"{where} cannot be read: {error}.") from error
    picture = np.asarray(row[image])
    if picture.dtype == np.uint16:
        picture = np.round(picture / 257).astype(np.uint8)  # 65535 / 257 = 255
    if picture.dtype != np.uint8:
        raise UserError(f"{where} has a picture of {picture.dtype}; pictures of 8 or 16 bits are read.")
    picture = as_array(Image.fromarray(picture), where) if picture.shape[-1] == 4 else picture
    return Example(picture, read(row, picture, where=where))


def _masked(row, image: np.ndarray, *, field: str, first: int, classes: int | None, where: str) -> np.ndarray:
    mask = np.asarray(row[field])[..., 0]
    if mask.min() < first or mask.max() > IGNORED:
        raise UserError(f"{where} has values {mask.min()}..{mask.max()} in {field}, beyond {first}..{IGNORED}.")
    mask = np.where(mask == IGNORED, IGNORED, mask - first).astype(np.uint8)
    return check_mask(mask, image, classes, f"{where}: {field}")


def _boxed(row, image: np.ndarray, *, field: str, box: str, label: str, crowd: str | None, classes: int, where: str):
    found = row[field]
    boxes, labels = np.asarray(found[box], np.float64).reshape(-1, 4), np.asarray(found[label], np.int64)
    if not np.isfinite(boxes).all():
        raise UserError(f"{where} has a box whose coordinates are not finite numbers.")
    if ((labels < 0) | (labels >= classes)).any():
        raise UserError(f"{where} has a class beyond 0..{classes - 1}.")
    scale = [*image.shape[:2]] * 2  # there, they are shares of the sides, in our order
    return objects(image, boxes * scale, labels, None if crowd is None else found[crowd])
