"""Replicas: runs that differ in numbers alone train as one program, with the results of single runs."""

import contextlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from tests.run import small
from tljax import config as schema
from tljax.errors import TrainingStopped
from tljax.report.loggers import read_metrics
from tljax.run import replica_groups, sweep
from tljax.run.experiment import prepare
from tljax.run.train import train, train_replicas
from tljax.storage.checkpoints import CheckpointManager
from tljax.train.loop import Trainer

SETTINGS = (
    {"optim.lr": 0.02, "optim.label_smoothing": 0.1},
    {"optim.lr": 0.005, "optim.weight_decay": 0.1, "model.dropout": 0.5},
    {"optim.lr": 0.01, "optim.schedule": "cosine", "optim.b1": 0.5},
)


@contextlib.contextmanager
def allow_replicas():
    """Train convolutions of several runs together even on CPU, where this is slow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replica_groups, "must_run_sequentially", lambda run: False)
        yield


def make_configs(c, folder, settings):
    """Return one config for each of the settings, in folders 0, 1, ..."""
    base = schema.override(schema.parse(c), {"optim.weight_decay": 0.01})
    return [schema.override(base, {"workdir": str(folder / str(i)), **s}) for i, s in enumerate(settings)]


def train_together(configs, console):
    """Train configs that must be one group, and return their results."""
    (group,) = replica_groups.plan_groups(configs)
    return train_replicas([run for _, run in group], console, lines=False)


def metric_rows(workdir):
    """Return the rows of metrics.jsonl without `seconds`."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(Path(workdir) / "metrics.jsonl")]


def assert_close(a, b):
    """Assert that two JSON values are equal, floats to 1e-5."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_close(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_close(x, y)
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-5)
    else:
        assert a == b


def dense_phases():
    """Return two phases that train the head only: on CPU, other runs do not train together."""
    first, second = small.config(None).strategy.phases
    return first, schema.Phase(second.name, first.rules, optim=second.optim)


def shorten(c):
    """Set three epochs per phase, and cache the features of frozen stages in memory."""
    c.train.epochs, c.train.patience_epochs, c.cache.storage = 3 * len(c.strategy.phases), 1, "memory"
    return c


@pytest.fixture(scope="module", params=["vmap", pytest.param("map", marks=pytest.mark.deep)])
def replicas(request, tmp_path_factory):
    """Return configs and results of three runs that trained together, and the number of programs."""
    folder = tmp_path_factory.mktemp(request.param)
    c = small.config(None)
    c.strategy.phases = dense_phases() if request.param == "vmap" else c.strategy.phases
    configs = make_configs(shorten(c), folder, SETTINGS)
    assert replica_groups.batching_mode(prepare(configs[0])) == request.param
    with allow_replicas(), small.record_programs() as programs:
        results = train_together(configs, Console(quiet=True))
    return configs, results, len(programs)


def with_workdirs_in(configs, folder):
    """Return the configs with work directories in another folder."""
    return [schema.override(c, {"workdir": str(folder / Path(c.workdir).name)}) for c in configs]


def read_checkpoints(config):
    """Return the steps of the best and the latest checkpoint, and the variables of the best."""
    with CheckpointManager(Path(config.workdir)) as checkpoints:
        return (checkpoints.best, checkpoints.latest), checkpoints.load_variables(checkpoints.best)


def assert_same_run(config, result, other, expected):
    for key in ("valid", "test", "gap", "best", "phases", "seed", "data"):
        a, b = (json.loads(json.dumps(r[key])) for r in (result, expected))
        for record in (*a, *b) if key == "phases" else ():
            del record["seconds"]
        assert_close(a, b)
    assert_close(metric_rows(config.workdir), metric_rows(other.workdir))
    steps, variables = read_checkpoints(config)
    other_steps, other_variables = read_checkpoints(other)
    assert steps == other_steps
    assert variables.keys() == other_variables.keys()
    for path in variables:
        np.testing.assert_allclose(variables[path], other_variables[path], rtol=1e-5, atol=1e-5)


def test_replicas_match_single_runs(replicas, tmp_path, console):
    configs, results, programs = replicas
    assert programs == 2  # one per phase
    steps = set()
    for config, other, result in zip(configs, with_workdirs_in(configs, tmp_path), results, strict=True):
        expected = train(other, console, lines=False)
        assert_same_run(config, result, other, expected)
        steps.add(tuple(phase["steps"] for phase in expected["phases"]))
    assert len(steps) > 1  # early stopping is separate for each run
    # Finished runs are not trained again.
    with allow_replicas():
        recorded = train_together(configs, console)
    assert [r["parameters_digest"] for r in recorded] == [r["parameters_digest"] for r in results]


def test_replicas_resume_at_different_steps(replicas, tmp_path, console, monkeypatch):
    configs, expected, _ = replicas
    interrupted = with_workdirs_in(configs, tmp_path)

    class Killed(BaseException):
        pass

    num_saves = 0
    save = CheckpointManager.save

    def save_or_kill(self, *args):
        nonlocal num_saves
        num_saves += 1
        if num_saves == 5:  # the first run is one checkpoint ahead of the others
            raise Killed
        save(self, *args)
        self.wait()

    groups = []
    fit = Trainer.fit

    def fit_and_record(self):
        fit(self)
        groups.append([Path(run.config.workdir).name for run in self.replicas.runs])

    with allow_replicas(), monkeypatch.context() as patch:
        patch.setattr(CheckpointManager, "save", save_or_kill)
        with pytest.raises(Killed):
            train_together(interrupted, console)
    positions = []
    for config in interrupted:
        with CheckpointManager(Path(config.workdir)) as checkpoints:
            progress = checkpoints.progress(checkpoints.latest)
        positions.append((progress["phase"], progress["step"]))
    assert positions[0] > positions[1] == positions[2] > (0, 0)
    with allow_replicas(), monkeypatch.context() as patch:
        patch.setattr(Trainer, "fit", fit_and_record)
        results = train_together(interrupted, console)
    assert groups == [["0"], ["1", "2"]]  # runs at the same step resume together
    for config, result, other, other_result in zip(interrupted, results, configs, expected, strict=True):
        assert_same_run(config, result, other, other_result)


def test_diverged_replica_does_not_affect_others(tiny, tmp_path, console):
    tiny.strategy.phases = dense_phases()[:1]
    settings = ({"optim.lr": 0.01}, {"optim.lr": 1e30})
    result, failure = train_together(make_configs(shorten(tiny), tmp_path, settings), console)
    assert isinstance(failure, TrainingStopped)
    assert "not finite at step" in str(failure)
    expected = train(make_configs(tiny, tmp_path / "single", settings)[0], console)
    assert result["valid"]["accuracy"] == expected["valid"]["accuracy"]


def test_groups_separate_programs_and_seeds(tiny):
    base = schema.parse(tiny)

    def group_sizes(*settings):
        configs = [schema.override(base, s) for s in settings]
        assert len({replica_groups.group_key(c) for c in configs}) == 1
        with allow_replicas():
            return [len(group) for group in replica_groups.plan_groups(configs)]

    assert group_sizes({"optim.lr": 0.1}, {"optim.lr": 0.2}, {"optim.weight_decay": 0.1}) == [2, 1]
    assert group_sizes({}, {"optim.name": "momentum"}, {"optim.name": "sgd"}) == [1, 1, 1]
    key = replica_groups.group_key(base)
    for settings in ({"seed": 1}, {"train.batch_size": 4}, {"data.labels_per_class": 10}, {"augment.flip": True}):
        assert replica_groups.group_key(schema.override(base, settings)) != key
    assert replica_groups.group_key(schema.override(base, {"strategy.temperature": 2.0})) == key


def test_groups_train_convolutions_sequentially_on_cpu(tiny):
    for phases, has_convolutions in ((tiny.strategy.phases, True), (tiny.strategy.phases[:1], False)):
        tiny.strategy.phases = phases
        config = schema.parse(tiny)
        configs = [config, schema.override(config, {"optim.lr": 0.5})]
        sizes = [len(group) for group in replica_groups.plan_groups(configs)]
        assert sizes == ([1, 1] if has_convolutions and jax.default_backend() == "cpu" else [2])


def test_sweep_over_numbers_compiles_once(tiny, tmp_path, console):
    tiny.workdir = str(tmp_path / "sweep")
    tiny.strategy.phases = tiny.strategy.phases[:1]
    tiny.train.epochs = 1
    tiny.report.figures = True
    tiny.sweep = {"optim.lr": [0.001, 0.02], "optim.weight_decay": [0.01, 0.3], "seed": [0, 1]}
    with small.record_programs() as programs:
        summary = sweep.run(schema.parse(tiny), console)
    # Four runs per seed share one program for both seeds; the chosen runs are only evaluated.
    assert len(programs) == 1
    assert len(summary["trials"]) == 8
    assert sum(trial["test"] is not None for trial in summary["trials"]) == 2
    assert (tmp_path / "sweep" / "figures" / "heat_map.png").stat().st_size > 1000
    assert "figures/heat_map.png" in (tmp_path / "sweep" / "report.md").read_text()
