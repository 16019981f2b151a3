"""The batch stream: a pure function of the position, fair to every picture."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tljax.data import Split
from tljax.data.loader import eval_batches, train_batches


def split_of(n):
    images = np.zeros((n, 2, 2, 1), np.uint8)
    return Split(images, np.arange(n, dtype=np.int32))


@settings(deadline=None)
@given(n=st.integers(1, 30), batch=st.integers(1, 40), epochs=st.integers(1, 4))
def test_every_picture_is_seen_equally_often_and_no_batch_is_short(n, batch, epochs):
    steps = epochs * n // batch
    seen = [b["label"] for b in train_batches(split_of(n), batch, (0, 0), steps)]
    assert all(len(labels) == batch for labels in seen)
    counts = np.bincount(np.concatenate([*seen, []]).astype(int), minlength=n)
    assert counts.max() - counts.min() <= 1


@settings(deadline=None)
@given(n=st.integers(3, 30), batch=st.integers(1, 8), stop=st.integers(0, 20))
def test_any_position_can_be_resumed(n, batch, stop):
    whole = [b["label"].tolist() for b in train_batches(split_of(n), batch, (5, 1), 21)]
    first = train_batches(split_of(n), batch, (5, 1), 21)
    for _ in range(stop):
        next(first)
    second = train_batches(split_of(n), batch, (5, 1), 21)
    second.set_state(first.get_state())
    assert [b["label"].tolist() for b in second] == whole[stop:]


def test_seeds_and_phases_have_their_own_order():
    orders = [next(train_batches(split_of(50), 50, seed, 1))["label"].tolist() for seed in ((0, 0), (0, 1), (1, 0))]
    assert len({tuple(o) for o in orders}) == 3


@pytest.mark.parametrize("n", [1, 7, 8, 9])
def test_evaluation_covers_every_row_once_and_marks_padding(n):
    batches = list(eval_batches(split_of(n), 4))
    assert all(b["image"].shape == (4, 2, 2, 1) for b in batches)
    labels = np.concatenate([b["label"] for b in batches])
    mask = np.concatenate([b["mask"] for b in batches])
    assert labels[mask == 1].tolist() == list(range(n))
