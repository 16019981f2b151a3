"""A run that is interrupted at any time resumes bit for bit."""

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


class Killed(BaseException):
    """Stands for a killed process: not an Exception, so that no handler cleans up."""


def metric_rows(workdir):
    """Return the rows of metrics.jsonl without `seconds`."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(workdir / "metrics.jsonl")]


def reproducible_entries(result):
    """Return the entries of a result that must not depend on interruptions."""
    keys = ("parameters_digest", "best", "valid", "test", "gap", "config_digest")
    phases = [{k: v for k, v in p.items() if k != "seconds"} for p in result["phases"]]
    return {k: result[k] for k in keys} | {"phases": phases}


def train_killed(config, console, monkeypatch, at):
    """Train until the metrics of the `at`-th step of this call are logged; return the result if it ends before."""
    advance_steps = ProgressBar.advance_steps
    steps = 0

    def advance_and_kill(self, count, *args):
        nonlocal steps
        advance_steps(self, count, *args)
        steps += count
        if steps - count < at <= steps:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(ProgressBar, "advance_steps", advance_and_kill)
        try:
            return train(config, console)
        except Killed:
            return None


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Return config, result and rows of an uninterrupted run with checkpoints between validations."""
    c = small.config(tmp_path_factory.mktemp("uninterrupted") / "run")
    c.train.checkpoint_epochs = 0.4
    config = schema.parse(c)
    return config, train(config, Console(quiet=True)), metric_rows(Path(config.workdir))


@pytest.mark.parametrize(
    ("kills", "positions"),
    [
        ((1, 6, 4, 3), [None, (0, 5), (0, 7), (1, 0)]),  # before the first checkpoint, and up to the end of the phase
        ((12, 2, 5), [(1, 2), (1, 2), (1, 5)]),  # the second one before a new checkpoint
    ],
)
def test_train_resumes_bit_for_bit(uninterrupted, kills, positions, tmp_path, console, monkeypatch):
    config, expected, expected_rows = uninterrupted
    config = schema.override(config, {"workdir": str(tmp_path / "run")})
    reached = []
    for at in kills:
        assert train_killed(config, console, monkeypatch, at) is None
        with CheckpointManager(tmp_path / "run") as checkpoints:
            progress = checkpoints.latest and checkpoints.progress(checkpoints.latest)
        reached.append(progress and (progress["phase"], progress["step"]))
    assert reached == positions
    assert reproducible_entries(train(config, console)) == reproducible_entries(expected)
    assert metric_rows(tmp_path / "run") == expected_rows


def test_resume_rewrites_row_without_checkpoint(uninterrupted, tmp_path, console, monkeypatch):
    config, expected, expected_rows = uninterrupted
    config = schema.override(config, {"workdir": str(tmp_path / "run")})
    save = CheckpointManager.save

    def save_or_kill(self, step, state, progress, metrics):
        if metrics is not None and progress["rows"] == 2:
            raise Killed
        save(self, step, state, progress, metrics)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointManager, "save", save_or_kill)
        with pytest.raises(Killed):
            train(config, console)
    assert len(metric_rows(tmp_path / "run")) == 2
    assert reproducible_entries(train(config, console)) == reproducible_entries(expected)
    assert metric_rows(tmp_path / "run") == expected_rows


LONG_CONFIG = """
from tests.run import small

def get_config():
    c = small.config(None)
    c.train.epochs = 10
    c.train.checkpoint_epochs = 0.4
    return c
"""


def test_command_resumes_after_sigkill_and_sigint(tmp_path, monkeypatch, capsys):
    """The command is killed, resumed and interrupted, resumed again, and compared with an uninterrupted run."""
    (tmp_path / "long.py").write_text(LONG_CONFIG)
    monkeypatch.chdir(ROOT)
    command = ["run.py", f"--config={tmp_path}/long.py"]
    workdir = tmp_path / "killed"
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

    advance_steps = ProgressBar.advance_steps
    steps = 0
    interrupted = False

    def advance_and_interrupt(self, count, *args):
        nonlocal steps, interrupted
        advance_steps(self, count, *args)
        steps += count
        if steps > 5 and not interrupted:  # a second SIGINT would end this process
            interrupted = True
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(ProgressBar, "advance_steps", advance_and_interrupt)
        assert cli.main([*command, f"--workdir={workdir}"]) == 130
    assert "the same command resumes from it" in capsys.readouterr().err
    assert not (workdir / "result.json").exists()

    for folder in (workdir, tmp_path / "uninterrupted"):
        assert cli.main([*command, f"--workdir={folder}"]) == 0
    expected = json.loads((tmp_path / "uninterrupted" / "result.json").read_text())
    result = json.loads((workdir / "result.json").read_text())
    assert reproducible_entries(result) == reproducible_entries(expected)
    assert metric_rows(workdir) == metric_rows(tmp_path / "uninterrupted")
    assert result["seconds"] > 0


def test_workdir_rejects_another_config(uninterrupted, console):
    config, *_ = uninterrupted
    with pytest.raises(UserError) as error:
        train(schema.override(config, {"optim.lr": 0.02, "seed": 5}), console)
    assert "optim.lr: 0.01 → 0.02" in str(error.value)
    assert "seed: 0 → 5" in str(error.value)


def test_train_returns_result_of_finished_run(uninterrupted, console):
    config, result, _ = uninterrupted
    assert train(config, console) == json.loads(json.dumps(result))
    assert "is finished" in console.export_text()


def test_train_writes_missing_report(uninterrupted, console, tmp_path):
    config, result, _ = uninterrupted
    shutil.copytree(config.workdir, tmp_path / "copy")
    config = dataclasses.replace(config, workdir=str(tmp_path / "copy"))
    (tmp_path / "copy" / "report.md").unlink()
    assert train(config, console) == json.loads(json.dumps(result))
    assert (tmp_path / "copy" / "report.md").is_file()


def test_workdir_rejects_second_process(tiny):
    config = schema.parse(tiny)
    with (
        WorkDir.create(config, {}),
        pytest.raises(UserError, match="Another process is running"),
        WorkDir.create(config, {}),
    ):
        pass


def test_checkpoints_of_older_version_are_rejected(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with CheckpointManager(tmp_path) as checkpoints:
        checkpoints.save(1, {"params": {"a": np.ones(2)}}, {"phase": 1}, None)
        checkpoints.wait()
        assert checkpoints.progress(1) == {"phase": 1}
    metadata = next(p for p in (tmp_path / "checkpoints" / "1" / "progress").iterdir() if "held" in p.read_text())
    metadata.write_text(json.dumps({"phase": 1}))
    with CheckpointManager(tmp_path) as checkpoints, pytest.raises(UserError, match="was written by an earlier tljax"):
        checkpoints.progress(1)
