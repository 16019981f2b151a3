"""Steps as one program: compiled once a phase, state given away, the same bits however pictures reach the device."""

import jax
import numpy as np
import pytest

from tljax import config as schema
from tljax.distributed.mesh import DeviceMesh
from tljax.run.train import train
from tljax.train import batches, replicas
from tljax.train.batches import BatchStream, row_batches


@pytest.fixture
def watched(monkeypatch):
    """The programs that a training compiles, and whether each call of one took the state that it was given."""
    programs, taken, make = {}, [], replicas.compile_replicas

    def making(*args):
        program = programs[args] = make(*args)

        def steps(state, *others):
            out = program(state, *others)
            taken.append(all(x.is_deleted() for x in jax.tree.leaves(state) if x.size > 1))
            return out

        return steps

    monkeypatch.setattr(replicas, "compile_replicas", making)
    return programs, taken


def test_a_phase_is_one_program_and_blocks_lead_to_the_same_bits(tiny, tmp_path, console, watched, monkeypatch):
    programs, taken = watched
    tiny.cache.storage = "memory"
    tiny.model.options = {"depths": (1,), "widths": (4,)}
    tiny.strategy.phases = (tiny.strategy.phases[0], schema.Phase("all", optim={"name": "nesterov"}))
    tiny.train.checkpoint_epochs, tiny.train.eval_epochs = 0.3, 0.7  # stretches of many lengths
    whole = train(schema.parse(tiny), console)
    assert [program._cache_size() for program in programs.values()] == [1, 1]
    monkeypatch.setattr(batches, "SHARE", 0)
    tiny.workdir = str(tmp_path / "blocks")
    blocks = train(schema.parse(tiny), console)
    # Batches in blocks instead of rows of arrays on the device: each of the two is compiled once more.
    assert [program._cache_size() for program in programs.values()] == [2, 2]
    assert taken
    assert all(taken)
    for key in ("parameters_digest", "best", "valid", "test"):
        assert blocks[key] == whole[key]


@pytest.mark.parametrize("resident", [True, False])
def test_a_feed_gives_each_picture_with_what_is_known_of_its_view(resident, monkeypatch):
    if not resident:
        monkeypatch.setattr(batches, "SHARE", 0)
    n, views, batch, steps = 10, 3, 4, 12
    images = np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1)
    arrays = {
        "image": images,
        "label": np.arange(n),
        "frozen_stages/maps/a": np.arange(n * views, dtype=np.float32)[:, None] + 100,
    }
    rows = row_batches(n * views, batch, (0, 0), steps, (n, 2), views)
    source = BatchStream(arrays | {"unlabelled": images + 50}, rows, DeviceMesh(batch), steps)
    assert source.on_device == resident
    seen, positions = [], []
    for count in (1, 5, 2, 4):
        positions.append(source.position)
        block = jax.device_get(source.next_block(count))
        for i in range(count):
            if resident:
                rows = block["row"][i]
                seen.append({name: x[rows % len(x)] for name, x in arrays.items()})
                seen[-1]["unlabelled"] = (images + 50)[block["unlabelled"][i]]
            else:
                seen.append({name: x[i] for name, x in block.items()})
    for step, found in enumerate(seen):
        epochs = np.arange(step * batch, (step + 1) * batch) // n
        np.testing.assert_array_equal(found["image"].ravel(), found["label"])
        np.testing.assert_array_equal(found["frozen_stages/maps/a"].ravel(), 100 + found["label"] + epochs % views * n)
        assert set(found["unlabelled"].ravel()) <= set(range(50, 60))
    labels = np.concatenate([found["label"] for found in seen])
    for epoch in range(len(labels) // n):
        assert sorted(labels[epoch * n : (epoch + 1) * n]) == list(range(n))
    source.seek(positions[2])
    again = jax.device_get(source.next_block(1))
    key = "row" if resident else "label"
    np.testing.assert_array_equal(again[key][0] % n, seen[6]["label"])
