"""Eight devices give what one gives."""

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
    """Trains a small network; returns its losses, and how much of parameters and optimizer state a device has."""
    shares, save, least = [], Replicas.save, mesh.MIN_SHARDED

    def saving(self, state, *rest):
        leaves = jax.tree.leaves((state.params, state.opt_state))
        shares.append(sum(x.addressable_shards[0].data.size for x in leaves) / sum(x.size for x in leaves))
        return save(self, state, *rest)

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
    Replicas.save, mesh.MIN_SHARDED = saving, 64
    try:
        result = train(config.parse(c), Console(file=io.StringIO()))
    finally:
        Replicas.save, mesh.MIN_SHARDED = save, least
    with open(f"{workdir}/metrics.jsonl") as file:
        rows = [json.loads(line) for line in file]
    losses = [[row[split]["loss"] for row in rows] for split in ("train", "valid")]
    return {
        "devices": len(result["devices"]),
        "losses": [*losses[0], *losses[1], result["test"]["loss"]],
        "share": max(shares),
    }


@pytest.mark.skipif(jax.device_count() != 1, reason="compares one device with eight virtual ones")
@pytest.mark.parametrize(("sharding", "most"), [pytest.param("none", 1, marks=pytest.mark.deep), ("fsdp", 0.2)])
def test_eight_virtual_devices_give_what_one_gives_and_may_share_the_parameters(tmp_path, sharding, most):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "eight"), sharding]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    one = losses_and_shares(str(tmp_path / "one"), "none")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-2000:]
    eight = json.loads(out.splitlines()[-1])
    assert (one["devices"], eight["devices"]) == (1, 8)
    assert one["share"] == 1
    assert 1 / 8 <= eight["share"] <= most
    assert eight["losses"] == pytest.approx(one["losses"], abs=1e-4)
