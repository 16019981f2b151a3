"""Training on eight virtual devices compared with one device."""

import io
import json
import os
import subprocess
import sys

import jax
import pytest
from rich.console import Console

from tests.conftest import ROOT
from tljax import config
from tljax.distributed import mesh
from tljax.run.train import train
from tljax.train.replicas import Replicas

PROGRAM = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
from tests.train.test_sharding import losses_and_shares
print(json.dumps(losses_and_shares(*sys.argv[1:])))
"""


def losses_and_shares(workdir, sharding):
    """Train a small network; return its losses and the fraction of parameters and optimizer state per device."""
    shares = []
    save = Replicas.save
    min_sharded = mesh.MIN_SHARDED

    def measure_and_save(self, state, *args):
        arrays = jax.tree.leaves((state.params, state.opt_state))
        shares.append(sum(x.addressable_shards[0].data.size for x in arrays) / sum(x.size for x in arrays))
        return save(self, state, *args)

    c = config.default()
    c.workdir = workdir
    c.data.classes = (1, 2, 3)
    c.data.labels_per_class = 16
    c.model.options = {"depths": (1,), "widths": (16,)}
    c.strategy.name = "scratch"
    c.optim.name = "momentum"
    c.optim.lr = 0.02
    c.optim.clip_norm = 1.0
    c.augment.flip = True
    c.model.dropout = 0.2
    c.train.batch_size = 16
    c.train.epochs = 1
    c.cache.storage = "none"
    c.train.sharding = sharding
    c.report.figures = c.report.tensorboard = False
    Replicas.save = measure_and_save
    mesh.MIN_SHARDED = 64
    try:
        result = train(config.parse(c), Console(file=io.StringIO()))
    finally:
        Replicas.save = save
        mesh.MIN_SHARDED = min_sharded
    with open(f"{workdir}/metrics.jsonl") as file:
        rows = [json.loads(line) for line in file]
    train_losses = [row["train"]["loss"] for row in rows]
    valid_losses = [row["valid"]["loss"] for row in rows]
    return {
        "devices": len(result["devices"]),
        "losses": [*train_losses, *valid_losses, result["test"]["loss"]],
        "share": max(shares),
    }


@pytest.mark.skipif(jax.device_count() != 1, reason="compares one device with eight virtual ones")
@pytest.mark.parametrize(("sharding", "max_share"), [pytest.param("none", 1, marks=pytest.mark.deep), ("fsdp", 0.2)])
def test_eight_devices_match_one(tmp_path, sharding, max_share):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "eight"), sharding]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    one = losses_and_shares(str(tmp_path / "one"), "none")
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr[-2000:]
    eight = json.loads(stdout.splitlines()[-1])
    assert (one["devices"], eight["devices"]) == (1, 8)
    assert one["share"] == 1
    assert 1 / 8 <= eight["share"] <= max_share
    assert eight["losses"] == pytest.approx(one["losses"], abs=1e-4)
