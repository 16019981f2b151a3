"""Splits are stratified, nested, disjoint and deterministic, count duplicates, and hide labels of unlabeled images."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tljax import data
from tljax.config import DataConfig, parse
from tljax.data import RawDataset, Split
from tljax.data.splits import few_shot_indices, make_splits, stratified_sample
from tljax.errors import UserError

CLASSES = ("a", "b", "c")


def make_source(counts=(20, 30, 40), test=10, seed=0):
    rng = np.random.default_rng(seed)

    def split(sizes):
        labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
        return Split(rng.integers(0, 256, (len(labels), 4, 4, 1), dtype=np.uint8), labels.astype(np.int32))

    return RawDataset(split(counts), split([test] * len(counts)), CLASSES[: len(counts)])


@given(
    labels=st.lists(st.integers(0, 2), min_size=30, max_size=80).filter(lambda x: min(np.bincount(x, minlength=3)) > 3),
    small=st.integers(1, 2),
    seed=st.integers(0, 9),
)
def test_few_shot_indices_are_stratified_and_nested(labels, small, seed):
    labels = np.array(labels)
    few = few_shot_indices(labels, small, seed)
    more = few_shot_indices(labels, small + 1, seed)
    assert set(few) < set(more)
    assert (np.bincount(labels[few], minlength=3) == small).all()
    assert (np.bincount(labels[more], minlength=3) == small + 1).all()


@given(st.lists(st.integers(0, 4), min_size=5, max_size=60), st.integers(1, 5))
def test_stratified_sample_returns_every_row_once(labels, count):
    sampled, rest = stratified_sample(np.array(labels), lambda n: min(n, count), key="k")
    assert sorted([*sampled, *rest]) == list(range(len(labels)))


def test_seed_changes_only_the_labeled_images():
    config = DataConfig(labels_per_class=5)
    a, b, again = (make_splits(make_source(), config, seed) for seed in (0, 1, 0))
    assert a.valid.fingerprint == b.valid.fingerprint
    assert a.test.fingerprint == b.test.fingerprint
    assert a.train.fingerprint != b.train.fingerprint
    assert a.describe() == again.describe()


def test_labels_per_class_are_nested_in_digits():
    few = data.load(DataConfig(labels_per_class=10), seed=3)
    more = data.load(DataConfig(labels_per_class=100), seed=3)
    assert set(few.train.image_hashes) < set(more.train.image_hashes)
    assert (np.bincount(few.train.labels) == 10).all()


def test_classes_are_relabeled_in_the_given_order():
    all_classes = data.load(DataConfig(), 0)
    two_classes = data.load(DataConfig(classes=(7, 3)), 0)
    assert two_classes.classes == ("7", "3")
    assert set(np.unique(two_classes.train.labels)) == {0, 1}
    expected, sevens = all_classes.valid, two_classes.valid
    hashes = {h for h, y in zip(expected.image_hashes, expected.labels, strict=True) if y == 7}
    assert {h for h, y in zip(sevens.image_hashes, sevens.labels, strict=True) if y == 0} == hashes


def test_splits_of_digits_are_disjoint_and_complete():
    d = data.load(DataConfig(), 0)
    assert len(d.train) + len(d.valid) + d.test.size == 1797
    assert set(d.describe()["duplicates"].values()) == {0}


def test_first_per_class_validates_on_test_files():
    source = make_source(test=10)
    d = make_splits(source, DataConfig(split="first_per_class", labels_per_class=4), 0)
    for split, published in ((d.train, source.train), (d.valid, source.test)):
        for c in range(3):
            expected = published.images[published.labels == c][:4]
            assert (split.images[split.labels == c] == expected).all()
    assert d.test.size == 30 - 12
    assert d.duplicates["valid/test"] == 0


def test_duplicates_across_splits_are_counted():
    source = make_source()
    copies = Split(source.train.images[:6], source.train.labels[:6])
    leaky = RawDataset(source.train, copies, CLASSES)
    d = make_splits(leaky, DataConfig(), 0)
    assert d.duplicates["train/test"] + d.duplicates["valid/test"] == 6


def test_held_out_split_opens_once():
    d = data.load(DataConfig(), 0)
    assert len(d.test.open()) == d.test.size
    with pytest.raises(UserError, match="opened once"):
        d.test.open()


def test_fingerprint_depends_on_pixels_labels_and_order():
    split = make_source().train
    images = split.images.copy()
    images[0, 0, 0] ^= 1
    swapped = split.select(np.array([1, 0, *range(2, len(split))]))
    relabeled = split.labels.copy()
    relabeled[0] += 1
    changed = (Split(images, split.labels), swapped, Split(split.images, relabeled))
    assert len({split.fingerprint, *(s.fingerprint for s in changed)}) == 4
    assert split.select(np.arange(len(split))).fingerprint == split.fingerprint
    labels = np.zeros((len(split), 2), np.int32)
    boxes = np.zeros((*labels.shape, 4), np.float32)
    changed_boxes = boxes.copy()
    changed_boxes[-1, -1, 3] = 1
    crowd = np.zeros(labels.shape, bool)
    crowd[-1, -1] = True
    targets = ((boxes,), (changed_boxes,), (boxes, crowd))
    assert len({Split(split.images, labels, *arrays).fingerprint for arrays in targets}) == 3


@pytest.mark.parametrize("split", ["fraction", "first_per_class"])
def test_unlabelled_images_are_the_rest_of_train(split):
    source = make_source()
    config = {"split": split, "labels_per_class": 4, "classes": (2, 0)}
    without, d = (make_splits(source, DataConfig(**config, unlabelled=n), 0) for n in (0, -1))
    for name in ("train", "valid", "test"):
        assert getattr(without, name).fingerprint == getattr(d, name).fingerprint
    parts = [d.train, d.unlabelled, *([d.valid] if split == "fraction" else [])]
    expected = source.train.select(np.flatnonzero(source.train.labels != 1))
    assert sorted(h for part in parts for h in part.image_hashes) == sorted(expected.image_hashes)
    assert set(d.describe()["duplicates"].values()) == {0}


def test_unlabelled_images_do_not_reveal_labels():
    source = make_source()
    train = source.train.select(np.argsort(source.train.labels, kind="stable"))
    sorted_by_class = RawDataset(train, source.test, CLASSES)
    d = make_splits(sorted_by_class, DataConfig(labels_per_class=4, unlabelled=-1), 0)
    assert set(vars(d.unlabelled)) <= {"images", "fingerprint", "image_hashes"}
    images = d.unlabelled.images
    assert images.base is None
    assert images.flags.c_contiguous
    assert images.flags.owndata
    # In a file sorted by class, the position reveals the label; here neighbors share a class only by chance.
    label_by_hash = dict(zip(train.image_hashes, train.labels, strict=True))
    labels = np.array([label_by_hash[h] for h in d.unlabelled.image_hashes])
    assert (np.diff(labels) != 0).sum() > len(labels) / 3


def test_unlabelled_images_depend_on_the_seed():
    def split(seed, n=20):
        return make_splits(make_source(), DataConfig(labels_per_class=4, unlabelled=n), seed)

    a, again, b = split(0), split(0), split(1)
    assert a.describe() == again.describe()
    assert a.describe()["unlabelled"] == {"fingerprint": a.unlabelled.fingerprint, "size": 20}
    assert a.unlabelled.fingerprint != b.unlabelled.fingerprint
    assert (split(0, 30).unlabelled.images[:20] == a.unlabelled.images).all()


def test_unlabelled_requires_labels_per_class():
    with pytest.raises(UserError, match=r"^data\.unlabelled needs data\.labels_per_class"):
        parse({"data": {"unlabelled": -1}})
    parse({"data": {"unlabelled": -1, "labels_per_class": 5}, "model": {"weights": "x"}})
    parse({"data": {"unlabelled": -1}, "model": {"weights": "x"}, "sweep": {"data.labels_per_class": [5, 10]}})


def test_describe_omits_unlabelled_images_if_there_are_none():
    description = make_splits(make_source(), DataConfig(labels_per_class=4), 0).describe()
    assert list(description) == ["name", "classes", "image_shape", "train", "valid", "test", "duplicates"]
    assert list(description["duplicates"]) == ["train/valid", "train/test", "valid/test"]


def test_duplicates_of_unlabelled_images_are_counted():
    source = make_source()
    rest = make_splits(source, DataConfig(labels_per_class=4, unlabelled=-1), 0).unlabelled
    copies = Split(rest.images[:7], np.zeros(7, np.int32))
    d = make_splits(RawDataset(source.train, copies, CLASSES), DataConfig(labels_per_class=4, unlabelled=-1), 0)
    assert d.duplicates["unlabelled/test"] == 7
    assert d.duplicates["unlabelled/valid"] == d.duplicates["train/unlabelled"] == 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DataConfig(labels_per_class=5000), 'but class "'),
        (DataConfig(classes=(1, 44)), "data.classes has 44, but the classes are 0..9"),
        (DataConfig(name="digit"), 'no data.name "digit"; did you mean "digits"'),
        (DataConfig(name="idx"), "needs data.path"),
        (DataConfig(path="x"), "built in"),
        (DataConfig(labels_per_class=50, unlabelled=5000), "leaves 578 training images without a label"),
        (DataConfig(unlabelled=-1), "leaves 0 training images"),
    ],
)
def test_load_errors(config, message):
    with pytest.raises(UserError) as error:
        data.load(config, 0)
    assert message in str(error.value)


def test_unlabelled_error_names_num_train_for_masks():
    masks = Split(np.zeros((10, 4, 4, 1), np.uint8), np.zeros((10, 4, 4), np.uint8))
    config = DataConfig(num_train=3, unlabelled=50)
    with pytest.raises(UserError, match=r"data\.unlabelled=50, but data\.num_train=3 leaves 5 training images"):
        make_splits(RawDataset(masks, masks, CLASSES), config, 0)
