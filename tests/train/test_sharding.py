"""Eight devices give what one gives."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PROGRAM = """
import io, json, sys
import jax
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
from rich.console import Console
from tljax import config
from tljax.run.train import train
from tljax.train import sharding
from tljax.train.loop import Fit
sharding.LEAST_SHARDED, shares, save = 64, [], Fit._save
def saving(self, place, own, state, *rest):
    leaves = jax.tree.leaves((state.learned, state.opt))
    shares.append(sum(x.addressable_shards[0].data.size for x in leaves) / sum(x.size for x in leaves))
    return save(self, place, own, state, *rest)
Fit._save = saving
c = config.default()
c.workdir = sys.argv[2]
c.data.classes = (1, 2, 3)
c.data.labels_per_class = 16
c.strategy.name = "scratch"
c.optim.name = "momentum"
c.optim.lr = 0.02
c.optim.clip_norm = 1.0
c.augment.flip = True
c.model.dropout = 0.2
c.train.batch_size = 16
c.train.epochs = 2
c.cache.where = "none"
c.train.shard = sys.argv[3]
c.report.figures = c.report.tensorboard = False
result = train(config.parse(c), Console(file=io.StringIO()))
rows = [json.loads(line) for line in open(f"{sys.argv[2]}/metrics.jsonl")]
print(json.dumps({"devices": len(result["devices"]), "loss": [r["train"]["loss"] for r in rows],
                  "valid": [r["valid"]["loss"] for r in rows], "test": result["test"]["loss"], "share": max(shares)}))
"""


def run(devices, workdir, shard="none"):
    command = [sys.executable, "-c", PROGRAM, str(devices), str(workdir), shard]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=dict(os.environ))
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("shard", "most"), [pytest.param("none", 1, marks=pytest.mark.deep), ("parameters", 0.2)])
def test_eight_virtual_devices_give_what_one_gives_and_may_share_the_parameters(tmp_path, shard, most):
    one, eight = run(1, tmp_path / "one"), run(8, tmp_path / "eight", shard)
    assert (one.pop("devices"), eight.pop("devices")) == (1, 8)
    assert one.pop("share") == 1
    assert 1 / 8 <= eight.pop("share") <= most
    for key, values in one.items():
        assert eight[key] == pytest.approx(values, abs=1e-4), key
