"""The batch stream: a pure function of the position, fair to every picture."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tljax.data.loader import eval_batches, train_batches


def arrays_of(n):
    rows = np.arange(n, dtype=np.int32)
    return {"image": np.zeros((n, 2, 2, 1), np.uint8), "label": rows, "teacher0/logits": rows[:, None] * [1.0, -1.0]}


def pictures_of(n):
    """Pictures that say their row."""
    return np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 2, 2, 1))


def rows_of(batches, name="label"):
    return [np.asarray(b[name]).reshape(len(b[name]), -1)[:, 0].tolist() for b in batches]


@settings(deadline=None)
@given(n=st.integers(1, 30), batch=st.integers(1, 40), epochs=st.integers(1, 4))
def test_every_picture_is_seen_equally_often_and_no_batch_is_short(n, batch, epochs):
    steps = epochs * n // batch
    seen = [b["label"] for b in train_batches(arrays_of(n), batch, (0, 0), steps)]
    assert all(len(labels) == batch for labels in seen)
    counts = np.bincount(np.concatenate([*seen, []]).astype(int), minlength=n)
    assert counts.max() - counts.min() <= 1


@settings(deadline=None)
@given(n=st.integers(3, 30), batch=st.integers(1, 8), stop=st.integers(0, 20))
def test_any_position_can_be_resumed(n, batch, stop):
    def start():
        return train_batches(arrays_of(n), batch, (5, 1), 21, (pictures_of(n + 4), 3))

    def pairs(batches):
        return [(b["label"].tolist(), b["unlabelled"].tolist()) for b in batches]

    whole, first, second = pairs(start()), start(), start()
    for _ in range(stop):
        next(first)
    second.set_state(first.get_state())
    assert pairs(second) == whole[stop:]


def test_the_order_is_that_of_earlier_checkpoints():
    batches = [[3, 0, 2], [1, 4, 4], [1, 0, 3], [2, 2, 1]]
    assert rows_of(train_batches(arrays_of(5), 3, (7, 1), 4)) == batches
    assert rows_of(train_batches(arrays_of(5), 3, (7, 1), 4, (pictures_of(9), 2))) == batches


def test_every_array_gives_the_same_rows():
    for batch in train_batches(arrays_of(10), 4, (0, 0), 5):
        np.testing.assert_array_equal(batch["teacher0/logits"], batch["label"][:, None] * [1.0, -1.0])
    with pytest.raises(ValueError, match="equally long"):
        train_batches({"image": pictures_of(3), "label": np.arange(4)}, 2, (0, 0), 1)


def test_unlabelled_pictures_are_seen_equally_often_in_an_order_of_their_own():
    n, epochs = 20, 6
    batches = list(train_batches(arrays_of(n), 5, (0, 0), 4 * epochs, (pictures_of(n), 5)))
    orders = {
        name: np.concatenate(rows_of(batches, name)).reshape(epochs, n).tolist() for name in ("label", "unlabelled")
    }
    assert all(sorted(order) == list(range(n)) for found in orders.values() for order in found)
    assert len({tuple(order) for found in orders.values() for order in found}) == 2 * epochs
    assert batches[0]["unlabelled"].shape == (5, 2, 2, 1)
    assert batches[0]["unlabelled"].dtype == np.uint8


def test_seeds_and_phases_have_their_own_order():
    orders = [next(train_batches(arrays_of(50), 50, seed, 1))["label"].tolist() for seed in ((0, 0), (0, 1), (1, 0))]
    assert len({tuple(o) for o in orders}) == 3


@pytest.mark.parametrize("n", [1, 7, 8, 9])
def test_evaluation_covers_every_row_once_and_marks_padding(n):
    arrays = arrays_of(n)
    batches = list(eval_batches(arrays, 4))
    assert all(b["image"].shape == (4, 2, 2, 1) for b in batches)
    labels = np.concatenate([b["label"] for b in batches])
    mask = np.concatenate([b["mask"] for b in batches])
    assert labels[mask == 1].tolist() == list(range(n))
