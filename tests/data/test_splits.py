"""Splits: stratified, nested, disjoint, deterministic, and honest about what they share."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tljax import data
from tljax.config import DataConfig
from tljax.data import Source, Split
from tljax.data.splits import label_budget, make_data, per_class
from tljax.errors import UserError

CLASSES = ("a", "b", "c")


def make_source(counts=(20, 30, 40), test=10, seed=0):
    rng = np.random.default_rng(seed)

    def split(sizes):
        labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
        return Split(rng.integers(0, 256, (len(labels), 4, 4, 1), dtype=np.uint8), labels.astype(np.int32))

    return Source(split(counts), split([test] * len(counts)), CLASSES[: len(counts)])


@given(
    labels=st.lists(st.integers(0, 2), min_size=30, max_size=80).filter(lambda x: min(np.bincount(x, minlength=3)) > 3),
    small=st.integers(1, 2),
    seed=st.integers(0, 9),
)
def test_budgets_are_stratified_and_nested(labels, small, seed):
    labels = np.array(labels)
    few = label_budget(labels, small, seed)
    more = label_budget(labels, small + 1, seed)
    assert set(few) < set(more)
    assert (np.bincount(labels[few], minlength=3) == small).all()
    assert (np.bincount(labels[more], minlength=3) == small + 1).all()


@given(st.lists(st.integers(0, 4), min_size=5, max_size=60), st.integers(1, 5))
def test_per_class_divides_every_row_once(labels, count):
    drawn, rest = per_class(np.array(labels), lambda n: min(n, count), key="k")
    assert sorted([*drawn, *rest]) == list(range(len(labels)))


def test_seed_moves_the_labelled_pictures_and_nothing_else():
    config = DataConfig(labels_per_class=5)
    a, b, again = (make_data(make_source(), config, seed) for seed in (0, 1, 0))
    assert a.valid.fingerprint == b.valid.fingerprint
    assert a.test.fingerprint == b.test.fingerprint
    assert a.train.fingerprint != b.train.fingerprint
    assert a.describe() == again.describe()


def test_the_ten_are_among_the_hundred_in_real_data():
    few = data.load(DataConfig(labels_per_class=10), seed=3)
    more = data.load(DataConfig(labels_per_class=100), seed=3)
    assert set(few.train.picture_hashes) < set(more.train.picture_hashes)
    assert (np.bincount(few.train.labels) == 10).all()


def test_classes_are_kept_and_relabelled_in_the_order_given():
    everything = data.load(DataConfig(), 0)
    some = data.load(DataConfig(classes=(7, 3)), 0)
    assert some.classes == ("7", "3")
    assert set(np.unique(some.train.labels)) == {0, 1}
    sevens = {h for h, y in zip(everything.valid.picture_hashes, everything.valid.labels, strict=True) if y == 7}
    assert {h for h, y in zip(some.valid.picture_hashes, some.valid.labels, strict=True) if y == 0} == sevens


def test_splits_of_the_digits_are_disjoint_and_whole():
    d = data.load(DataConfig(), 0)
    assert len(d.train) + len(d.valid) + d.test.size == 1797
    assert set(d.describe()["shared_pictures"].values()) == {0}


def test_first_per_class_takes_validation_from_the_test_files():
    source = make_source(test=10)
    d = make_data(source, DataConfig(split="first_per_class", labels_per_class=4), 0)
    for split, origin in ((d.train, source.train), (d.valid, source.test)):
        for c in range(3):
            expected = origin.images[origin.labels == c][:4]
            assert (split.images[split.labels == c] == expected).all()
    assert d.test.size == 30 - 12
    assert d.shared_pictures["valid/test"] == 0


def test_shared_pictures_are_counted():
    source = make_source()
    twins = Split(source.train.images[:6], source.train.labels[:6])
    leaky = Source(source.train, twins, CLASSES)
    d = make_data(leaky, DataConfig(), 0)
    assert d.shared_pictures["train/test"] + d.shared_pictures["valid/test"] == 6


def test_the_test_split_opens_once():
    d = data.load(DataConfig(), 0)
    assert len(d.test.open()) == d.test.size
    with pytest.raises(UserError, match="opened once"):
        d.test.open()


def test_fingerprint_sees_pixels_labels_and_order():
    split = make_source().train
    other = split.images.copy()
    other[0, 0, 0] ^= 1
    swapped = split.take(np.array([1, 0, *range(2, len(split))]))
    prints = {split.fingerprint, Split(other, split.labels).fingerprint, swapped.fingerprint}
    assert len(prints) == 3
    assert split.take(np.arange(len(split))).fingerprint == split.fingerprint


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (DataConfig(labels_per_class=5000), 'but class "'),
        (DataConfig(classes=(1, 44)), "data.classes names 44, but the classes are 0..9"),
        (DataConfig(name="digit"), 'no data.name "digit"; did you mean "digits"'),
        (DataConfig(name="idx"), "needs data.path"),
        (DataConfig(path="x"), "built in"),
    ],
)
def test_errors(config, words):
    with pytest.raises(UserError) as caught:
        data.load(config, 0)
    assert words in str(caught.value)
