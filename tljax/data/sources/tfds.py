"""Prepared TensorFlow Datasets with labels, masks or boxes; their fields are found by type.

They are read through TFDS's random-access data source, without TensorFlow.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tljax.config import DataConfig
from tljax.config.fields import field
from tljax.data.dataset import IGNORED, RawDataset, Split
from tljax.data.sources import options as source_options
from tljax.data.sources.images import check_mask, image_to_array, resize
from tljax.data.sources.records import Example, ImageRecord, Objects, make_objects, read_records
from tljax.errors import UserError, did_you_mean

# Options of published datasets that do not follow from their features.
DATASET_OPTIONS = {
    "coco": {"test": "validation"},  # its test split has no annotations
    "oxford_iiit_pet": {"first": 1, "classes": ("pet", "background", "border")},
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Fields and splits, for datasets in which they are ambiguous."""

    image: str | None = field(None, "field of the image; None: image, else the only one with more than one channel")
    mask: str | None = field(None, "field of the mask; None: the only image of one channel")
    objects: str | None = field(None, "field of the boxes; None: the only sequence with boxes")
    classes: tuple[str, ...] = field((), "names of a mask's values; empty: those of the field, else numbers")
    first: int = field(0, "the value of a mask that is class 0", ge=0, le=254)
    train: str = field("train", "split of training images")
    valid: str | None = field(None, "split of validation images; None: they are held out of train")
    test: str | None = field(None, "split of test images; None: test, else validation")


class BoxFields(NamedTuple):
    """Names of the fields that describe boxes.

    Attributes:
      objects: sequence field of the dataset; the others are its parts.
      box: bounding box.
      label: class.
      crowd: whether the box is a crowd or difficult; None: there is no such field.
    """

    objects: str
    box: str
    label: str
    crowd: str | None


def open_dataset(config: DataConfig, options: Options = Options()):
    """Open the splits of a prepared dataset.

    Args:
      config: the data section of the config. `name` is "tfds:" and an argument of `tfds.builder`, e.g. "cifar10" or
        "my_set/config:1.0.0"; `path` is the folder of prepared datasets, None for the default of TFDS.
      options: of the source.

    Returns:
      Features {name: feature}, and the rows {"train": rows, "test": rows, optionally "valid": rows}.

    Raises:
      UserError: the dataset is not prepared, or has no such splits.
    """
    import tensorflow_datasets as tfds  # imported late: the import takes two seconds

    name = config.name.removeprefix("tfds:")
    try:
        builder: Any = tfds.builder(name, data_dir=config.path)
        available = dict(builder.info.splits)
        test = options.test or next((s for s in ("test", "validation") if s in available), None)
        splits = {"train": options.train, "valid": options.valid, "test": test}
        if options.train not in available or test not in available or options.valid not in (None, *available):
            required = f"{options.train} and {options.test or 'test or validation'}"
            raise UserError(f"{config.name} needs splits {required}; it has {list(available)}.")
        rows = {key: builder.as_data_source(split=split) for key, split in splits.items() if split}
    except (tfds.core.DatasetNotFoundError, ValueError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{config.name} cannot be read from {config.path or 'the default data_dir'}: {reason} "
            "Prepare it with download_and_prepare(file_format='array_record')."
        ) from error
    return dict(builder.info.features.items()), rows


def label_names(label) -> tuple[str, ...]:
    """Return the class names of a label feature, else its class numbers as text."""
    return tuple(label.names) if label.names else tuple(map(str, range(label.num_classes)))


def load(config: DataConfig, task: str) -> RawDataset:
    """Load labels, masks (255 ignored) or boxes (crowd or difficult ones are marked as crowds).

    Args:
      config: the data section of the config.
      task: "classification", "segmentation" or "detection".

    Raises:
      UserError: no field or several fields have the required type, or `open_dataset` or `read_records` fails.
    """
    if task == "classification":
        source_options.parse_options(config, source_options.NoOptions)
        return _load_classification(config)
    defaults = DATASET_OPTIONS.get(config.name.removeprefix("tfds:").split("/")[0].split(":")[0], {})
    options = source_options.parse_options(dataclasses.replace(config, options={**defaults, **config.options}), Options)
    features, splits = open_dataset(config, options)
    image_field = _find_field(features, "image", options.image, config.name)
    if task == "segmentation":
        mask_field = _find_field(features, "mask", options.mask, config.name)
        classes = options.classes or _mask_names(features[mask_field])
        make_target = functools.partial(
            _mask_target, field=mask_field, first=options.first, num_classes=len(classes) or None
        )
    else:
        objects_field = _find_field(features, "objects", options.objects, config.name)
        fields, classes = _find_box_fields(features, objects_field)
        make_target = functools.partial(_box_target, fields=fields, num_classes=len(classes))
    records = {
        split: [
            ImageRecord(origin, functools.partial(_read_example, rows, i, image_field, make_target, origin))
            for i in range(len(rows))
            for origin in (f"{config.name}, row {i} of {split}",)
        ]
        for split, rows in splits.items()
    }
    dataset = read_records(records, classes, config)
    if classes:
        return dataset
    splits = [s for s in (dataset.train, dataset.valid, dataset.test) if s is not None]
    max_label = max(int(s.labels[s.labels != IGNORED].max(initial=0)) for s in splits)
    return dataclasses.replace(dataset, classes=tuple(map(str, range(max_label + 1))))


def _load_classification(config: DataConfig) -> RawDataset:
    """Load the fields `image` and `label`, resized to `data.image_size` if the images differ in size."""
    features, rows = open_dataset(config)
    if not {"image", "label"} <= set(features):
        raise UserError(f"{config.name} has no image and label; it has {list(features)}.")
    splits = {split: _read_labeled_images(rows[split], config) for split in ("train", "test")}
    return RawDataset(splits["train"], splits["test"], label_names(features["label"]))


def _read_labeled_images(rows, config: DataConfig) -> Split:
    images, labels = [], []
    size = config.image_size
    for row in rows:
        images.append(np.atleast_3d(np.asarray(row["image"], np.uint8)))
        labels.append(int(row["label"]))
    if len({image.shape for image in images}) > 1:
        if size is None:
            raise UserError(f"The images of {config.name} differ in size: set data.image_size.")
        images = [resize(image, (size, size)) for image in images]
    return Split(np.stack(images), np.asarray(labels, np.int32))


def _find_field(features: dict, kind: str, name: str | None, dataset: str) -> str:
    """Return the name of the field of a kind.

    Args:
      features: features of the dataset by name.
      kind: "image", "mask" or "objects".
      name: name in the options, which is checked; None: the only field of the right type.
      dataset: name of the dataset, for messages.
    """
    if kind == "objects":
        sequences: dict[str, Any] = {k: getattr(f, "feature", None) for k, f in features.items()}
        parts = {k: dict(f.items()) for k, f in sequences.items() if hasattr(f, "items")}
        candidates = [k for k, f in parts.items() if _of_type(f, "BBoxFeature") and _of_type(f, "ClassLabel")]
    else:
        images = _of_type(features, "Image")
        candidates = [k for k in images if (features[k].shape[-1] == 1) == (kind == "mask")]
        if kind == "image":
            candidates = ["image"] if "image" in images else candidates
            candidates = images if name else candidates  # a named image field may be grayscale
    if name is not None:
        if name not in candidates:
            raise UserError(f'data.options.{kind}: {dataset} has no field "{name}"{did_you_mean(name, candidates)}')
        return name
    if len(candidates) > 1:
        raise UserError(
            f"{dataset} has several fields for {kind}: {', '.join(candidates)}; choose with data.options.{kind}."
        )
    if not candidates:
        raise UserError(f"{dataset} has no field for {kind}; it has {list(features)}.")
    return candidates[0]


def _find_box_fields(features: dict, objects_field: str) -> tuple[BoxFields, tuple[str, ...]]:
    """Return the fields of boxes and the class names."""
    parts = dict(features[objects_field].feature.items())
    box = _of_type(parts, "BBoxFeature")[0]
    label = "label" if "label" in parts else _of_type(parts, "ClassLabel")[0]
    crowd = next((name for name in ("is_crowd", "is_difficult") if name in parts), None)
    return BoxFields(objects_field, box, label, crowd), label_names(parts[label])


def _of_type(features: dict, kind: str) -> list[str]:
    """Return the names of the features of a TFDS feature class or its subclasses."""
    import tensorflow_datasets as tfds

    return [name for name, feature in features.items() if isinstance(feature, getattr(tfds.features, kind))]


def _mask_names(feature) -> tuple[str, ...]:
    return label_names(feature) if getattr(feature, "num_classes", None) else ()


def _read_example(rows, index: int, image_field: str, make_target, origin: str) -> Example:
    try:
        row = rows[index]
    except (OSError, ValueError, TypeError, AttributeError, SyntaxError) as error:
        raise UserError(f"{origin} cannot be read: {error}.") from error
    image = np.asarray(row[image_field])
    if image.dtype == np.uint16:
        image = np.round(image / 257).astype(np.uint8)  # 65535 / 257 = 255
    if image.dtype != np.uint8:
        raise UserError(f"{origin} has an image of {image.dtype}; only 8 and 16 bits are supported.")
    image = image_to_array(Image.fromarray(image), origin) if image.shape[-1] == 4 else image
    return Example(image, make_target(row, image, origin=origin))


def _mask_target(row, image: np.ndarray, *, field: str, first: int, num_classes: int | None, origin: str) -> np.ndarray:
    mask = np.asarray(row[field])[..., 0]
    if mask.min() < first or mask.max() > IGNORED:
        raise UserError(f"{origin} has values {mask.min()}..{mask.max()} in {field}, beyond {first}..{IGNORED}.")
    mask = np.where(mask == IGNORED, IGNORED, mask - first).astype(np.uint8)
    return check_mask(mask, image, num_classes, f"{origin}: {field}")


def _box_target(row, image: np.ndarray, *, fields: BoxFields, num_classes: int, origin: str) -> Objects:
    objects = row[fields.objects]
    boxes = np.asarray(objects[fields.box], np.float64).reshape(-1, 4)
    labels = np.asarray(objects[fields.label], np.int64)
    if not np.isfinite(boxes).all():
        raise UserError(f"{origin} has a box whose coordinates are not finite numbers.")
    if ((labels < 0) | (labels >= num_classes)).any():
        raise UserError(f"{origin} has a class beyond 0..{num_classes - 1}.")
    scale = [*image.shape[:2]] * 2  # TFDS boxes are [y0, x0, y1, x1] as shares of the image's sides
    return make_objects(image, boxes * scale, labels, None if fields.crowd is None else objects[fields.crowd])
