"""Programs of many steps: one compilation per phase, donated state, and equal results with and without blocks."""

import jax
import numpy as np
import pytest

from tljax import config as schema
from tljax.distributed.mesh import DeviceMesh
from tljax.run.train import train
from tljax.train import batches, replicas
from tljax.train.batches import BatchStream, row_batches


@pytest.fixture
def watched_programs(monkeypatch):
    """Return the programs that training compiles, and whether each call donated its state."""
    programs = {}
    donated = []
    compile_replicas = replicas.compile_replicas

    def compile_watched(*args):
        program = programs[args] = compile_replicas(*args)

        def run(state, *rest):
            outputs = program(state, *rest)
            donated.append(all(x.is_deleted() for x in jax.tree.leaves(state) if x.size > 1))
            return outputs

        return run

    monkeypatch.setattr(replicas, "compile_replicas", compile_watched)
    return programs, donated


def test_phase_is_one_program_and_blocks_match(tiny, tmp_path, console, watched_programs, monkeypatch):
    programs, donated = watched_programs
    tiny.cache.storage = "memory"
    tiny.model.options = {"depths": (1,), "widths": (4,)}
    tiny.strategy.phases = (tiny.strategy.phases[0], schema.Phase("all", optim={"name": "nesterov"}))
    tiny.train.checkpoint_epochs = 0.3
    tiny.train.eval_epochs = 0.7  # the number of steps between events varies
    on_device = train(schema.parse(tiny), console)
    assert [program._cache_size() for program in programs.values()] == [1, 1]
    monkeypatch.setattr(batches, "MAX_MEMORY_FRACTION", 0)
    tiny.workdir = str(tmp_path / "blocks")
    in_blocks = train(schema.parse(tiny), console)
    # With batches instead of row indices, each of the two programs is compiled once more.
    assert [program._cache_size() for program in programs.values()] == [2, 2]
    assert donated
    assert all(donated)
    for key in ("parameters_digest", "best", "valid", "test"):
        assert in_blocks[key] == on_device[key]


@pytest.mark.parametrize("on_device", [True, False])
def test_batch_stream_matches_images_and_cached_views(on_device, monkeypatch):
    if not on_device:
        monkeypatch.setattr(batches, "MAX_MEMORY_FRACTION", 0)
    n, views, batch, steps = 10, 3, 4, 12
    images = np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1)
    arrays = {
        "image": images,
        "label": np.arange(n),
        "frozen_stages/maps/a": np.arange(n * views, dtype=np.float32)[:, None] + 100,
    }
    rows = row_batches(n * views, batch, (0, 0), steps, (n, 2), views)
    stream = BatchStream(arrays | {"unlabelled": images + 50}, rows, DeviceMesh(batch), steps)
    assert stream.on_device == on_device
    seen_batches = []
    positions = []
    for count in (1, 5, 2, 4):
        positions.append(stream.position)
        block = jax.device_get(stream.next_block(count))
        for i in range(count):
            if on_device:
                rows = block["row"][i]
                seen_batches.append({name: x[rows % len(x)] for name, x in arrays.items()})
                seen_batches[-1]["unlabelled"] = (images + 50)[block["unlabelled"][i]]
            else:
                seen_batches.append({name: x[i] for name, x in block.items()})
    for step, seen in enumerate(seen_batches):
        epochs = np.arange(step * batch, (step + 1) * batch) // n
        np.testing.assert_array_equal(seen["image"].ravel(), seen["label"])
        cached = 100 + seen["label"] + epochs % views * n
        np.testing.assert_array_equal(seen["frozen_stages/maps/a"].ravel(), cached)
        assert set(seen["unlabelled"].ravel()) <= set(range(50, 60))
    labels = np.concatenate([seen["label"] for seen in seen_batches])
    for epoch in range(len(labels) // n):
        assert sorted(labels[epoch * n : (epoch + 1) * n]) == list(range(n))
    stream.seek(positions[2])
    repeated = jax.device_get(stream.next_block(1))
    key = "row" if on_device else "label"
    np.testing.assert_array_equal(repeated[key][0] % n, seen_batches[6]["label"])
