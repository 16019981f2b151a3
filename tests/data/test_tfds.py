"""Prepared TensorFlow Datasets with boxes and masks, read without TensorFlow."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from tljax.config import DataConfig
from tljax.data.sources import registry
from tljax.data.sources import tfds as tfds_source
from tljax.errors import UserError

tfds = pytest.importorskip("tensorflow_datasets")

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 10, 3), dtype=np.uint8)
MASK = np.array([[1, 2], [3, 255]], np.uint8).repeat(4, 0).repeat(5, 1)
# ymin, xmin, ymax, xmax
BOXES = [[[0.0, 0.1, 0.5, 0.9], [0.25, 0.0, 1.0, 0.5]], [], [[0.5, 0.5, 0.5, 1.0]], [[0.0, 0.0, 1.0, 1.0]] * 4, []]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tfds")

    class TinyScenes(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = path

        def _info(self):
            objects = {
                "bbox": tfds.features.BBoxFeature(),
                "pose": tfds.features.ClassLabel(names=["left", "right"]),
                "label": tfds.features.ClassLabel(names=["cat", "dog"]),
                "is_difficult": np.bool_,
            }
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "segmentation_mask": tfds.features.Image(shape=(None, None, 1)),
                "objects": tfds.features.Sequence(objects),
                "name": tfds.features.Text(),
            }
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._rows(0, 3), "validation": self._rows(3, 5)}

        def _rows(self, start, stop):
            for i in range(start, stop):
                objects = [
                    {"bbox": tfds.features.BBox(*box), "pose": 0, "label": k % 2, "is_difficult": k == 1}
                    for k, box in enumerate(BOXES[i])
                ]
                image = Image.fromarray(IMAGES[i])
                mask = Image.fromarray(MASK)
                yield i, {"image": image, "segmentation_mask": mask, "objects": objects, "name": f"{i}"}

        def _generate_examples(self):
            raise AssertionError("each split has its own generator")

    TinyScenes(data_dir=path).download_and_prepare(file_format="array_record")
    return path


def load(folder, task, image_size=None, **options):
    config = DataConfig(name="tfds:tiny_scenes", path=str(folder), image_size=image_size, options=options)
    return registry.load_source(config, task)


def row_by_image(split):
    return {image.tobytes(): k for k, image in enumerate(split.images)}


def test_boxes_are_found_by_feature_type(folder):
    source = load(folder, "detection")
    assert source.classes == ("cat", "dog")
    assert source.train.labels.shape == (3, 4)
    rows = row_by_image(source.train)
    first = rows[IMAGES[0].tobytes()]
    assert source.train.boxes[first, :2] == pytest.approx(np.array([[0, 1, 4, 9], [2, 0, 8, 5]]))
    assert source.train.labels[first].tolist() == [0, 1, -1, -1]
    assert source.train.crowd[first].tolist() == [False, True, False, False]
    assert (source.train.labels[rows[IMAGES[2].tobytes()]] == -1).all()  # a box without height
    assert source.test.labels[row_by_image(source.test)[IMAGES[3].tobytes()]].tolist() == [0, 1, 0, 1]


def test_masks_are_found_by_type_and_numbered_from_first(folder):
    source = load(folder, "segmentation", first=1, classes=("pet", "ground", "border"))
    assert source.classes == ("pet", "ground", "border")
    expected = np.array([[0, 1], [2, 255]]).repeat(4, 0).repeat(5, 1)
    assert (source.train.labels == expected).all()
    assert load(folder, "segmentation").classes == ("0", "1", "2", "3")
    assert (
        load(folder, "segmentation", image_size=4).test.labels[0].tolist()
        == [[1, 1, 2, 2]] * 2 + [[3, 3, 255, 255]] * 2
    )


def test_splits_and_fields_can_be_chosen_by_name(folder):
    source = load(folder, "detection", train="validation", test="train", valid="validation", objects="objects")
    assert (len(source.train), len(source.valid), len(source.test)) == (2, 2, 3)
    source = load(folder, "segmentation", image="segmentation_mask", mask="segmentation_mask")
    assert (source.train.images[0, ..., 0] == MASK).all()


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("segmentation", {"mask": "image"}, 'data.options.mask: tfds:tiny_scenes has no field "image"'),
        ("detection", {"objects": "object"}, 'no field "object"; did you mean "objects"'),
        ("segmentation", {"classes": ("a", "b")}, "row 0 of train: segmentation_mask has the value 2"),
        ("segmentation", {"first": 2}, r"has values 1\.\.255 in segmentation_mask, beyond 2\.\.255"),
        ("detection", {"test": "tset"}, r"needs splits train and tset; it has \['train', 'validation'\]"),
        ("detection", {"boxes": "a"}, 'has no "boxes"'),
        ("classification", {}, "has no image and label"),
    ],
)
def test_invalid_options_raise(folder, task, options, message):
    with pytest.raises(UserError, match=message):
        load(folder, task, **options)


def test_fields_of_published_datasets_are_found():
    def images(**channels):
        return {name: tfds.features.Image(shape=(None, None, c)) for name, c in channels.items()}

    city = images(image_left=3, segmentation_label=1)
    assert tfds_source._find_field(city, "image", None, "") == "image_left"
    assert tfds_source._find_field(city, "mask", None, "") == "segmentation_label"
    with pytest.raises(UserError, match=r"several fields for mask: a, b; choose with data\.options\.mask"):
        tfds_source._find_field(images(image=3, a=1, b=1), "mask", None, "tfds:x")
    with pytest.raises(UserError, match="no field for objects"):
        tfds_source._find_field(city, "objects", None, "tfds:x")
    labeled = tfds.features.LabeledImage(labels=["sky", "sea"], shape=(None, None, 1))
    assert tfds_source._mask_names(labeled) == ("sky", "sea")


def test_invalid_boxes_and_classes_are_rejected(folder):
    image = IMAGES[0]
    fields = tfds_source.BoxFields("o", "b", "l", None)
    options = {"fields": fields, "num_classes": 2, "origin": "row 3"}
    with pytest.raises(UserError, match="row 3 has a box whose coordinates are not finite"):
        tfds_source._box_target({"o": {"b": [[0, np.nan, 1, 1]], "l": [0]}}, image, **options)
    with pytest.raises(UserError, match=r"row 3 has a class beyond 0\.\.1"):
        tfds_source._box_target({"o": {"b": [[0, 0, 1, 1]], "l": [-1]}}, image, **options)


def test_dataset_options_are_fields_of_options():
    names = {field.name for field in dataclasses.fields(tfds_source.Options)}
    assert all(set(options) <= names for options in tfds_source.DATASET_OPTIONS.values())
