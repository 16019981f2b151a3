"""A run can die at any instant and goes on to the same bits."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.conftest import ROOT
from tljax import config as schema
from tljax.checkpoints import Checkpoints
from tljax.errors import UserError
from tljax.report.log import Bar, read_rows
from tljax.run.train import train
from tljax.run.workdir import WorkDir


class Death(BaseException):
    """Not an Exception: nothing may catch it and tidy up."""


def rows_of(workdir):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_rows(workdir / "metrics.jsonl")]


def outcome(result):
    keys = ("parameters_digest", "best", "valid", "test", "gap", "config_digest")
    phases = [{k: v for k, v in p.items() if k != "seconds"} for p in result["phases"]]
    return {k: result[k] for k in keys} | {"phases": phases}


def test_death_at_any_step_leads_to_the_same_bits(tiny, tmp_path, console, monkeypatch):
    tiny.train.checkpoint_epochs = 0.4
    whole = train(schema.parse(tiny), console)
    expected_rows = rows_of(tmp_path / "run")
    alive = Bar.steps
    rng = np.random.default_rng(0)
    for trial in range(3):
        workdir = tmp_path / f"dying{trial}"
        tiny.workdir = str(workdir)
        deaths, result = 0, None
        while result is None:
            left = int(rng.integers(1, 9))

            def dying(self, count, *args, left=left):
                alive(self, count, *args)
                self.count, before = getattr(self, "count", 0) + count, getattr(self, "count", 0)
                if before < left <= self.count:
                    raise Death

            monkeypatch.setattr(Bar, "steps", dying if deaths < 6 else alive)
            try:
                result = train(schema.parse(tiny), console)
            except Death:
                deaths += 1
        assert deaths > 1
        assert outcome(result) == outcome(whole)
        assert rows_of(workdir) == expected_rows


@pytest.fixture
def long_run(tmp_path):
    """A config file whose run takes some seconds of training, in two phases, mid-epoch checkpoints included."""
    path = tmp_path / "long.py"
    path.write_text(
        "from tljax import config\n"
        "def get_config():\n"
        "    c = config.default()\n"
        "    c.data.classes = (1, 2, 3)\n"
        "    c.model.dropout = 0.2\n"
        "    c.strategy.name = 'custom'\n"
        "    c.strategy.phases = (\n"
        "        config.Phase('head', (('head/.*', 1.0), ('.*', 0.0)), epochs=4),\n"
        "        config.Phase('all', (('.*', 1.0),)),\n"
        "    )\n"
        "    c.augment.flip = True\n"
        "    c.train.batch_size = 8\n"
        "    c.train.epochs = 8\n"
        "    c.train.checkpoint_epochs = 0.4\n"
        "    c.report.figures = False\n"
        "    return c\n"
    )
    return path


def start(config, workdir):
    return subprocess.Popen(
        [sys.executable, "run.py", f"--config={config}", f"--workdir={workdir}"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_rows(process, workdir, count):
    deadline = time.monotonic() + 120
    while len(read_rows(workdir / "metrics.jsonl")) < count and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_ctrl_c_and_kill_9_of_real_processes(long_run, tmp_path):
    whole = start(long_run, tmp_path / "whole")
    rng, workdir = np.random.default_rng(1), tmp_path / "killed"
    for kill, rows in ((signal.SIGINT, 1), (signal.SIGKILL, 3), (signal.SIGKILL, 5)):
        process = start(long_run, workdir)
        wait_for_rows(process, workdir, rows)
        time.sleep(rng.uniform(0, 0.15))
        process.send_signal(kill)
        _, err = process.communicate(timeout=60)
        if kill == signal.SIGINT:
            assert process.returncode == 130
            assert "the same command goes on from here" in err
        else:
            assert process.returncode == -signal.SIGKILL
        assert not (workdir / "result.json").exists()
    final = start(long_run, workdir)
    assert final.wait(timeout=120) == 0
    assert whole.wait(timeout=120) == 0
    results = [json.loads((w / "result.json").read_text()) for w in (tmp_path / "whole", workdir)]
    assert outcome(results[0]) == outcome(results[1])
    assert rows_of(tmp_path / "whole") == rows_of(workdir)
    assert results[1]["seconds"] > 0


def test_another_config_on_the_same_workdir_is_refused_with_what_differs(tiny, console):
    train(schema.parse(tiny), console)
    tiny.optim.lr = 0.02
    tiny.seed = 5
    with pytest.raises(UserError) as caught:
        train(schema.parse(tiny), console)
    assert "optim.lr: 0.01 → 0.02" in str(caught.value)
    assert "seed: 0 → 5" in str(caught.value)


def test_a_finished_run_is_not_run_again(tiny, console):
    first = train(schema.parse(tiny), console)
    assert train(schema.parse(tiny), console) == json.loads(json.dumps(first))
    assert "is finished" in console.export_text()


def test_two_processes_cannot_share_a_workdir(tiny, console, tmp_path):
    config = schema.parse(tiny)
    owner = WorkDir(config.workdir)
    owner.claim(config, {})
    with owner, pytest.raises(UserError, match="Another process is running"), WorkDir(config.workdir):
        pass


def test_checkpoints_of_an_earlier_version_are_named_as_such(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"params": {"a": np.ones(2)}}, {"phase": 1}, None)
        checkpoints.wait()
        assert checkpoints.progress(1) == {"phase": 1}
    written = next(p for p in (tmp_path / "checkpoints" / "1" / "progress").iterdir() if "held" in p.read_text())
    written.write_text(json.dumps({"phase": 1}))
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="was begun by an earlier tljax"):
        checkpoints.progress(1)
