"""Training batches are a pure function of the position and use all images equally often; evaluation batches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tljax.data.loader import eval_batches, train_batches


def make_arrays(n):
    rows = np.arange(n, dtype=np.int32)
    return {"image": np.zeros((n, 2, 2, 1), np.uint8), "label": rows, "teacher0/logits": rows[:, None] * [1.0, -1.0]}


def make_images(n):
    """Return images whose pixels are their row index."""
    return np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 2, 2, 1))


def row_indices(batches, name="label"):
    return [np.asarray(b[name]).reshape(len(b[name]), -1)[:, 0].tolist() for b in batches]


@settings(deadline=None)
@given(n=st.integers(1, 30), batch=st.integers(1, 40), epochs=st.integers(1, 4))
def test_train_batches_are_full_and_use_all_rows_equally(n, batch, epochs):
    steps = epochs * n // batch
    batches = [b["label"] for b in train_batches(make_arrays(n), batch, (0, 0), steps)]
    assert all(len(labels) == batch for labels in batches)
    counts = np.bincount(np.concatenate([*batches, []]).astype(int), minlength=n)
    assert counts.max() - counts.min() <= 1


@settings(deadline=None)
@given(n=st.integers(3, 30), batch=st.integers(1, 8), stop=st.integers(0, 20))
def test_train_batches_resume_at_any_position(n, batch, stop):
    def start():
        return train_batches(make_arrays(n), batch, (5, 1), 21, (make_images(n + 4), 3))

    def pairs(batches):
        return [(b["label"].tolist(), b["unlabelled"].tolist()) for b in batches]

    expected = pairs(start())
    first, second = start(), start()
    for _ in range(stop):
        next(first)
    second.set_state(first.get_state())
    assert pairs(second) == expected[stop:]


def test_train_batches_keep_the_order_of_old_checkpoints():
    batches = [[3, 0, 2], [1, 4, 4], [1, 0, 3], [2, 2, 1]]
    assert row_indices(train_batches(make_arrays(5), 3, (7, 1), 4)) == batches
    assert row_indices(train_batches(make_arrays(5), 3, (7, 1), 4, (make_images(9), 2))) == batches


def test_train_batches_have_the_same_rows_of_all_arrays():
    for batch in train_batches(make_arrays(10), 4, (0, 0), 5):
        np.testing.assert_array_equal(batch["teacher0/logits"], batch["label"][:, None] * [1.0, -1.0])
    with pytest.raises(ValueError, match="equally long"):
        train_batches({"image": make_images(3), "label": np.arange(4)}, 2, (0, 0), 1)


def test_unlabelled_images_have_an_independent_order():
    n, epochs = 20, 6
    batches = list(train_batches(make_arrays(n), 5, (0, 0), 4 * epochs, (make_images(n), 5)))
    orders = {
        name: np.concatenate(row_indices(batches, name)).reshape(epochs, n).tolist() for name in ("label", "unlabelled")
    }
    assert all(sorted(order) == list(range(n)) for stream in orders.values() for order in stream)
    assert len({tuple(order) for stream in orders.values() for order in stream}) == 2 * epochs
    assert batches[0]["unlabelled"].shape == (5, 2, 2, 1)
    assert batches[0]["unlabelled"].dtype == np.uint8


def test_train_batches_differ_between_seeds_and_phases():
    orders = [next(train_batches(make_arrays(50), 50, seed, 1))["label"].tolist() for seed in ((0, 0), (0, 1), (1, 0))]
    assert len({tuple(o) for o in orders}) == 3


@pytest.mark.parametrize("n", [1, 7, 8, 9])
def test_eval_batches_cover_every_row_once_and_mask_padding(n):
    arrays = make_arrays(n)
    batches = list(eval_batches(arrays, 4))
    assert all(b["image"].shape == (4, 2, 2, 1) for b in batches)
    labels = np.concatenate([b["label"] for b in batches])
    mask = np.concatenate([b["mask"] for b in batches])
    assert labels[mask == 1].tolist() == list(range(n))
