"""A run can die at any instant and goes on to the same bits."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tests.conftest import ROOT
from tests.run import small
from tljax import config as schema
from tljax.errors import UserError
from tljax.report.loggers import ProgressBar, read_metrics
from tljax.run import cli
from tljax.run.train import train
from tljax.run.workdir import WorkDir
from tljax.storage.checkpoints import CheckpointManager


class Death(BaseException):
    """Not an Exception: nothing may catch it and tidy up."""


def rows_of(workdir):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(workdir / "metrics.jsonl")]


def outcome(result):
    keys = ("parameters_digest", "best", "valid", "test", "gap", "config_digest")
    phases = [{k: v for k, v in p.items() if k != "seconds"} for p in result["phases"]]
    return {k: result[k] for k in keys} | {"phases": phases}


def train_dying(config, console, monkeypatch, at):
    """Trains until the metrics of step `at` of this sitting arrive; returns the result where it is through before."""
    alive, arrived = ProgressBar.advance_steps, []

    def dying(self, count, *args):
        alive(self, count, *args)
        before = len(arrived)
        arrived.extend([1] * count)
        if before < at <= len(arrived):
            raise Death

    with monkeypatch.context() as patch:
        patch.setattr(ProgressBar, "steps", dying)
        try:
            return train(config, console)
        except Death:
            return None


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The config, result and rows of a run that nothing interrupts, with checkpoints between validations."""
    c = small.config(tmp_path_factory.mktemp("whole") / "run")
    c.train.checkpoint_epochs = 0.4
    config = schema.parse(c)
    return config, train(config, Console(quiet=True)), rows_of(Path(config.workdir))


@pytest.mark.parametrize(
    ("deaths", "places"),
    [
        ((1, 6, 4, 3), [None, (0, 5), (0, 7), (1, 0)]),  # before there is a checkpoint, and to the end of the phase
        ((12, 2, 5), [(1, 2), (1, 2), (1, 5)]),  # between two checkpoints, so that nothing was gained
    ],
)
def test_death_at_any_step_leads_to_the_same_bits(whole, deaths, places, tmp_path, console, monkeypatch):
    config, expected, expected_rows = whole
    config, stood = schema.override(config, {"workdir": str(tmp_path / "dying")}), []
    for at in deaths:
        assert train_dying(config, console, monkeypatch, at) is None
        with CheckpointManager(tmp_path / "dying") as checkpoints:
            progress = checkpoints.latest and checkpoints.progress(checkpoints.latest)
        stood.append(progress and (progress["phase"], progress["step"]))
    assert stood == places
    assert outcome(train(config, console)) == outcome(expected)
    assert rows_of(tmp_path / "dying") == expected_rows


def test_a_row_whose_checkpoint_was_not_written_is_written_again(whole, tmp_path, console, monkeypatch):
    config, expected, expected_rows = whole
    config, save = schema.override(config, {"workdir": str(tmp_path / "dying")}), CheckpointManager.save

    def dying(self, step, state, progress, metrics):
        if metrics is not None and progress["rows"] == 2:
            raise Death
        save(self, step, state, progress, metrics)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointManager, "save", dying)
        with pytest.raises(Death):
            train(config, console)
    assert len(rows_of(tmp_path / "dying")) == 2
    assert outcome(train(config, console)) == outcome(expected)
    assert rows_of(tmp_path / "dying") == expected_rows


LONG = """
from tests.run import small

def get_config():
    c = small.config(None)
    c.train.epochs = 10
    c.train.checkpoint_epochs = 0.4
    return c
"""


def test_kill_9_and_ctrl_c_of_the_command(tmp_path, monkeypatch, capsys):
    """A process is killed, the command is interrupted when it goes on, and ends as a run that nothing interrupts."""
    (tmp_path / "long.py").write_text(LONG)
    monkeypatch.chdir(ROOT)
    command, workdir = ["run.py", f"--config={tmp_path}/long.py"], tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, *command, f"--workdir={workdir}"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while len(read_metrics(workdir / "metrics.jsonl")) < 2 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    assert process.wait(timeout=60) == -signal.SIGKILL

    alive, seen, asked = ProgressBar.advance_steps, [], []

    def interrupted(self, count, *args):
        alive(self, count, *args)
        seen.extend([1] * count)
        if len(seen) > 5 and not asked:  # the second Ctrl-C would end this process
            asked.append(signal.raise_signal(signal.SIGINT))

    with monkeypatch.context() as patch:
        patch.setattr(ProgressBar, "steps", interrupted)
        assert cli.main([*command, f"--workdir={workdir}"]) == 130
    assert "the same command resumes from it" in capsys.readouterr().err
    assert not (workdir / "result.json").exists()

    for folder in (workdir, tmp_path / "whole"):
        assert cli.main([*command, f"--workdir={folder}"]) == 0
    results = [json.loads((w / "result.json").read_text()) for w in (tmp_path / "whole", workdir)]
    assert outcome(results[0]) == outcome(results[1])
    assert rows_of(tmp_path / "whole") == rows_of(workdir)
    assert results[1]["seconds"] > 0


def test_another_config_on_the_same_workdir_is_refused_with_what_differs(whole, console):
    config, *_ = whole
    with pytest.raises(UserError) as caught:
        train(schema.override(config, {"optim.lr": 0.02, "seed": 5}), console)
    assert "optim.lr: 0.01 → 0.02" in str(caught.value)
    assert "seed: 0 → 5" in str(caught.value)


def test_a_finished_run_is_not_run_again(whole, console):
    config, result, _ = whole
    assert train(config, console) == json.loads(json.dumps(result))
    assert "is finished" in console.export_text()


def test_a_run_killed_before_its_report_gets_one(whole, console, tmp_path):
    config, result, _ = whole
    shutil.copytree(config.workdir, tmp_path / "copy")
    config = dataclasses.replace(config, workdir=str(tmp_path / "copy"))
    (tmp_path / "copy" / "report.md").unlink()
    assert train(config, console) == json.loads(json.dumps(result))
    assert (tmp_path / "copy" / "report.md").is_file()


def test_two_processes_cannot_share_a_workdir(tiny):
    config = schema.parse(tiny)
    with (
        WorkDir.create(config, {}),
        pytest.raises(UserError, match="Another process is running"),
        WorkDir.create(config, {}),
    ):
        pass


def test_checkpoints_of_an_earlier_version_are_named_as_such(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with CheckpointManager(tmp_path) as checkpoints:
        checkpoints.save(1, {"params": {"a": np.ones(2)}}, {"phase": 1}, None)
        checkpoints.wait()
        assert checkpoints.progress(1) == {"phase": 1}
    written = next(p for p in (tmp_path / "checkpoints" / "1" / "progress").iterdir() if "held" in p.read_text())
    written.write_text(json.dumps({"phase": 1}))
    with CheckpointManager(tmp_path) as checkpoints, pytest.raises(UserError, match="was written by an earlier tljax"):
        checkpoints.progress(1)
