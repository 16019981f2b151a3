"""Runs that differ in numbers alone train together, and each is what it would have been alone."""

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

NUMBERS = (
    {"optim.lr": 0.02, "optim.label_smoothing": 0.1},
    {"optim.lr": 0.005, "optim.weight_decay": 0.1, "model.dropout": 0.5},
    {"optim.lr": 0.01, "optim.schedule": "cosine", "optim.b1": 0.5},
)


@contextlib.contextmanager
def at_once():
    """Convolutions of several runs train together even on a processor, where it is slow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replica_groups, "must_run_sequentially", lambda run: False)
        yield


def configs_of(c, folder, numbers):
    base = schema.override(schema.parse(c), {"optim.weight_decay": 0.01})
    return [schema.override(base, {"workdir": str(folder / str(i)), **n}) for i, n in enumerate(numbers)]


def together_of(configs, console, **options):
    ((runs),) = [[run for _, run in batch] for batch in replica_groups.plan_groups(configs)]
    return train_replicas(runs, console, lines=False, **options)


def rows_of(workdir):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(Path(workdir) / "metrics.jsonl")]


def assert_alike(a, b):
    """Equal, numbers to 1e-5."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_alike(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_alike(x, y)
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-5)
    else:
        assert a == b


def dense_phases():
    """Two phases in which the head alone learns, which is when runs train together on a processor."""
    c = small.config(None)
    first, second = c.strategy.phases
    return first, schema.Phase(second.name, first.rules, optim=second.optim)


def short(c):
    """Three epochs a phase, with the features of frozen stages in memory."""
    c.train.epochs, c.train.patience_epochs, c.cache.storage = 3 * len(c.strategy.phases), 1, "memory"
    return c


@pytest.fixture(scope="module", params=["vmap", pytest.param("map", marks=pytest.mark.deep)])
def both(request, tmp_path_factory):
    """Configs and results of three runs that trained together, and how many programs that took."""
    folder, c = tmp_path_factory.mktemp(request.param), small.config(None)
    c.strategy.phases = dense_phases() if request.param == "vmap" else c.strategy.phases
    configs = configs_of(short(c), folder, NUMBERS)
    assert replica_groups.batching_mode(prepare(configs[0])) == request.param
    with at_once(), small.watched_programs() as programs:
        results = together_of(configs, Console(quiet=True))
    return configs, results, len(programs)


def moved(configs, folder):
    """The same runs in other work directories."""
    return [schema.override(c, {"workdir": str(folder / Path(c.workdir).name)}) for c in configs]


def assert_same_run(config, result, other, expected):
    for key in ("valid", "test", "gap", "best", "phases", "seed", "data"):
        a, b = (json.loads(json.dumps(r[key])) for r in (result, expected))
        for record in (*a, *b) if key == "phases" else ():
            del record["seconds"]
        assert_alike(a, b)
    assert_alike(rows_of(config.workdir), rows_of(other.workdir))
    with CheckpointManager(Path(config.workdir)) as mine, CheckpointManager(Path(other.workdir)) as theirs:
        assert (mine.best, mine.latest) == (theirs.best, theirs.latest)
        a, b = mine.load_variables(mine.best), theirs.load_variables(theirs.best)
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_allclose(a[path], b[path], rtol=1e-5, atol=1e-5)


def test_each_is_the_run_alone(both, tmp_path, console):
    configs, results, programs = both
    assert programs == 2  # one a phase
    stopped = set()
    for config, other, result in zip(configs, moved(configs, tmp_path), results, strict=True):
        expected = train(other, console, lines=False)
        assert_same_run(config, result, other, expected)
        stopped.add(tuple(phase["steps"] for phase in expected["phases"]))
    assert len(stopped) > 1  # early stopping is each run's own
    # What is finished is read.
    with at_once():
        again = together_of(configs, console)
    assert [r["parameters_digest"] for r in again] == [r["parameters_digest"] for r in results]


def test_what_died_goes_on_wherever_each_stands(both, tmp_path, console, monkeypatch):
    configs, expected, _ = both
    died = moved(configs, tmp_path)

    class Death(BaseException):
        pass

    saves, save = [], CheckpointManager.save

    def dying(self, *args):
        saves.append(1)
        if len(saves) == 5:  # the first run is a checkpoint ahead of the others
            raise Death
        save(self, *args)
        self.wait()

    groups, fit = [], Trainer.fit

    def watched(self):
        fit(self)
        groups.append([Path(run.config.workdir).name for run in self.replicas.runs])

    with at_once(), monkeypatch.context() as patch:
        patch.setattr(CheckpointManager, "save", dying)
        with pytest.raises(Death):
            together_of(died, console)
    stood = []
    for config in died:
        with CheckpointManager(Path(config.workdir)) as checkpoints:
            progress = checkpoints.progress(checkpoints.latest)
        stood.append((progress["phase"], progress["step"]))
    assert stood[0] > stood[1] == stood[2] > (0, 0)
    with at_once(), monkeypatch.context() as patch:
        patch.setattr(Trainer, "fit", watched)
        results = together_of(died, console)
    assert groups == [["0"], ["1", "2"]]  # those that stand at the same step go on together
    for run_of in zip(died, results, configs, expected, strict=True):
        assert_same_run(*run_of)


def test_one_that_diverges_leaves_the_others_alone(tiny, tmp_path, console):
    tiny.strategy.phases = dense_phases()[:1]
    numbers = ({"optim.lr": 0.01}, {"optim.lr": 1e30})
    good, bad = together_of(configs_of(short(tiny), tmp_path, numbers), console)
    assert isinstance(bad, TrainingStopped)
    assert "not finite at step" in str(bad)
    alone = train(configs_of(tiny, tmp_path / "alone", numbers)[0], console)
    assert good["valid"]["accuracy"] == alone["valid"]["accuracy"]


def test_what_shapes_a_program_or_the_pictures_keeps_runs_apart(tiny):
    base = schema.parse(tiny)

    def sizes(*numbers):
        configs = [schema.override(base, n) for n in numbers]
        assert len({replica_groups.group_key(c) for c in configs}) == 1
        with at_once():
            return [len(batch) for batch in replica_groups.plan_groups(configs)]

    assert sizes({"optim.lr": 0.1}, {"optim.lr": 0.2}, {"optim.weight_decay": 0.1}) == [2, 1]
    assert sizes({}, {"optim.name": "momentum"}, {"optim.name": "sgd"}) == [1, 1, 1]
    for change in ({"seed": 1}, {"train.batch_size": 4}, {"data.labels_per_class": 10}, {"augment.flip": True}):
        assert replica_groups.group_key(schema.override(base, change)) != replica_groups.group_key(base)
    assert replica_groups.group_key(schema.override(base, {"strategy.temperature": 2.0})) == replica_groups.group_key(
        base
    )


def test_runs_whose_convolutions_learn_take_turns_on_a_processor(tiny):
    for phases, expected in ((tiny.strategy.phases, True), (tiny.strategy.phases[:1], False)):
        tiny.strategy.phases = phases
        config = schema.parse(tiny)
        both = [config, schema.override(config, {"optim.lr": 0.5})]
        sizes = [len(batch) for batch in replica_groups.plan_groups(both)]
        assert sizes == ([1, 1] if expected and jax.default_backend() == "cpu" else [2])


def test_a_sweep_over_numbers_compiles_once_opens_test_for_the_winner_and_draws_a_map(tiny, tmp_path, console):
    tiny.workdir = str(tmp_path / "sweep")
    tiny.strategy.phases = tiny.strategy.phases[:1]
    tiny.train.epochs = 1
    tiny.report.figures = True
    tiny.sweep = {"optim.lr": [0.001, 0.02], "optim.weight_decay": [0.01, 0.3], "seed": [0, 1]}
    with small.watched_programs() as programs:
        summary = sweep.run(schema.parse(tiny), console)
    # The program for four runs serves both seeds; the winners are only judged.
    assert len(programs) == 1
    assert len(summary["cells"]) == 8
    assert sum(cell["test"] is not None for cell in summary["cells"]) == 2
    assert (tmp_path / "sweep" / "figures" / "heat_map.png").stat().st_size > 1000
    assert "figures/heat_map.png" in (tmp_path / "sweep" / "report.md").read_text()
