"""Splits: stratified, nested, disjoint, deterministic, honest about what they share, and mute about labels left out."""

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
def test_budgets_are_stratified_and_nested(labels, small, seed):
    labels = np.array(labels)
    few = few_shot_indices(labels, small, seed)
    more = few_shot_indices(labels, small + 1, seed)
    assert set(few) < set(more)
    assert (np.bincount(labels[few], minlength=3) == small).all()
    assert (np.bincount(labels[more], minlength=3) == small + 1).all()


@given(st.lists(st.integers(0, 4), min_size=5, max_size=60), st.integers(1, 5))
def test_per_class_divides_every_row_once(labels, count):
    drawn, rest = stratified_sample(np.array(labels), lambda n: min(n, count), key="k")
    assert sorted([*drawn, *rest]) == list(range(len(labels)))


def test_seed_moves_the_labelled_pictures_and_nothing_else():
    config = DataConfig(labels_per_class=5)
    a, b, again = (make_splits(make_source(), config, seed) for seed in (0, 1, 0))
    assert a.valid.fingerprint == b.valid.fingerprint
    assert a.test.fingerprint == b.test.fingerprint
    assert a.train.fingerprint != b.train.fingerprint
    assert a.describe() == again.describe()


def test_the_ten_are_among_the_hundred_in_real_data():
    few = data.load(DataConfig(labels_per_class=10), seed=3)
    more = data.load(DataConfig(labels_per_class=100), seed=3)
    assert set(few.train.image_hashes) < set(more.train.image_hashes)
    assert (np.bincount(few.train.labels) == 10).all()


def test_classes_are_kept_and_relabelled_in_the_order_given():
    everything = data.load(DataConfig(), 0)
    some = data.load(DataConfig(classes=(7, 3)), 0)
    assert some.classes == ("7", "3")
    assert set(np.unique(some.train.labels)) == {0, 1}
    sevens = {h for h, y in zip(everything.valid.image_hashes, everything.valid.labels, strict=True) if y == 7}
    assert {h for h, y in zip(some.valid.image_hashes, some.valid.labels, strict=True) if y == 0} == sevens


def test_splits_of_the_digits_are_disjoint_and_whole():
    d = data.load(DataConfig(), 0)
    assert len(d.train) + len(d.valid) + d.test.size == 1797
    assert set(d.describe()["duplicates"].values()) == {0}


def test_first_per_class_takes_validation_from_the_test_files():
    source = make_source(test=10)
    d = make_splits(source, DataConfig(split="first_per_class", labels_per_class=4), 0)
    for split, origin in ((d.train, source.train), (d.valid, source.test)):
        for c in range(3):
            expected = origin.images[origin.labels == c][:4]
            assert (split.images[split.labels == c] == expected).all()
    assert d.test.size == 30 - 12
    assert d.duplicates["valid/test"] == 0


def test_shared_pictures_are_counted():
    source = make_source()
    twins = Split(source.train.images[:6], source.train.labels[:6])
    leaky = RawDataset(source.train, twins, CLASSES)
    d = make_splits(leaky, DataConfig(), 0)
    assert d.duplicates["train/test"] + d.duplicates["valid/test"] == 6


def test_the_test_split_opens_once():
    d = data.load(DataConfig(), 0)
    assert len(d.test.open()) == d.test.size
    with pytest.raises(UserError, match="opened once"):
        d.test.open()


def test_fingerprint_sees_pixels_labels_and_order():
    split = make_source().train
    other = split.images.copy()
    other[0, 0, 0] ^= 1
    swapped = split.select(np.array([1, 0, *range(2, len(split))]))
    relabelled = split.labels.copy()
    relabelled[0] += 1
    changed = (Split(other, split.labels), swapped, Split(split.images, relabelled))
    assert len({split.fingerprint, *(s.fingerprint for s in changed)}) == 4
    assert split.select(np.arange(len(split))).fingerprint == split.fingerprint
    labels = np.zeros((len(split), 2), np.int32)
    boxes = np.zeros((*labels.shape, 4), np.float32)
    moved, crowd = boxes.copy(), np.zeros(labels.shape, bool)
    moved[-1, -1, 3], crowd[-1, -1] = 1, True
    known = ((boxes,), (moved,), (boxes, crowd))
    assert len({Split(split.images, labels, *rest).fingerprint for rest in known}) == 3


@pytest.mark.parametrize("split", ["fraction", "first_per_class"])
def test_unlabelled_pictures_are_the_rest_of_the_training_pictures(split):
    source = make_source()
    config = {"split": split, "labels_per_class": 4, "classes": (2, 0)}
    bare, d = (make_splits(source, DataConfig(**config, unlabelled=n), 0) for n in (0, -1))
    for name in ("train", "valid", "test"):
        assert getattr(bare, name).fingerprint == getattr(d, name).fingerprint
    parts = [d.train, d.unlabelled, *([d.valid] if split == "fraction" else [])]
    kept = source.train.select(np.flatnonzero(source.train.labels != 1))
    assert sorted(h for part in parts for h in part.image_hashes) == sorted(kept.image_hashes)
    assert set(d.describe()["duplicates"].values()) == {0}


def test_no_label_is_within_reach_of_the_unlabelled():
    source = make_source()
    ordered = RawDataset(source.train.select(np.argsort(source.train.labels, kind="stable")), source.test, CLASSES)
    d = make_splits(ordered, DataConfig(labels_per_class=4, unlabelled=-1), 0)
    assert set(vars(d.unlabelled)) <= {"images", "fingerprint", "image_hashes"}
    images = d.unlabelled.images
    assert images.base is None
    assert images.flags.c_contiguous
    assert images.flags.owndata
    # In files sorted by class, a picture's place tells its label; here neighbours are of one class by chance alone.
    label = dict(zip(ordered.train.image_hashes, ordered.train.labels, strict=True))
    labels = np.array([label[h] for h in d.unlabelled.image_hashes])
    assert (np.diff(labels) != 0).sum() > len(labels) / 3


def test_unlabelled_pictures_are_drawn_by_the_seed():
    def draw(seed, n=20):
        return make_splits(make_source(), DataConfig(labels_per_class=4, unlabelled=n), seed)

    a, again, b = draw(0), draw(0), draw(1)
    assert a.describe() == again.describe()
    assert a.describe()["unlabelled"] == {"fingerprint": a.unlabelled.fingerprint, "size": 20}
    assert a.unlabelled.fingerprint != b.unlabelled.fingerprint
    assert (draw(0, 30).unlabelled.images[:20] == a.unlabelled.images).all()


def test_unlabelled_pictures_need_a_budget_of_labels():
    with pytest.raises(UserError, match=r"^data\.unlabelled needs data\.labels_per_class"):
        parse({"data": {"unlabelled": -1}})
    parse({"data": {"unlabelled": -1, "labels_per_class": 5}, "model": {"weights": "x"}})
    parse({"data": {"unlabelled": -1}, "model": {"weights": "x"}, "sweep": {"data.labels_per_class": [5, 10]}})


def test_data_without_unlabelled_pictures_describes_itself_as_ever():
    described = make_splits(make_source(), DataConfig(labels_per_class=4), 0).describe()
    assert list(described) == ["name", "classes", "image_shape", "train", "valid", "test", "duplicates"]
    assert list(described["duplicates"]) == ["train/valid", "train/test", "valid/test"]


def test_test_pictures_among_the_unlabelled_are_counted():
    source = make_source()
    rest = make_splits(source, DataConfig(labels_per_class=4, unlabelled=-1), 0).unlabelled
    twins = Split(rest.images[:7], np.zeros(7, np.int32))
    d = make_splits(RawDataset(source.train, twins, CLASSES), DataConfig(labels_per_class=4, unlabelled=-1), 0)
    assert d.duplicates["unlabelled/test"] == 7
    assert d.duplicates["unlabelled/valid"] == d.duplicates["train/unlabelled"] == 0


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (DataConfig(labels_per_class=5000), 'but class "'),
        (DataConfig(classes=(1, 44)), "data.classes names 44, but the classes are 0..9"),
        (DataConfig(name="digit"), 'no data.name "digit"; did you mean "digits"'),
        (DataConfig(name="idx"), "needs data.path"),
        (DataConfig(path="x"), "built in"),
        (DataConfig(labels_per_class=50, unlabelled=5000), "leaves 578 training pictures without a label"),
        (DataConfig(unlabelled=-1), "leaves 0 training pictures"),
    ],
)
def test_errors(config, words):
    with pytest.raises(UserError) as caught:
        data.load(config, 0)
    assert words in str(caught.value)
