"""Runs that differ in numbers alone train together, and each is what it would have been alone."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from tljax import config as schema
from tljax.checkpoints import Checkpoints
from tljax.errors import TrainingStopped
from tljax.report.log import read_rows
from tljax.run import sweep, together
from tljax.run.train import train, train_together
from tljax.train.program import make_steps

NUMBERS = (
    {"optim.lr": 0.02, "optim.label_smoothing": 0.1},
    {"optim.lr": 0.005, "optim.weight_decay": 0.1, "model.dropout": 0.5},
    {"optim.lr": 0.01, "optim.schedule": "cosine", "optim.b1": 0.5},
)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Small networks: a loop over their runs may be slow here, and must be right."""
    monkeypatch.setattr(together, "in_turn", lambda run: False)


def configs_of(tiny, folder, numbers):
    base = schema.parse(tiny)
    base = schema.override(base, {"optim.weight_decay": 0.01})
    return [schema.override(base, {"workdir": str(folder / str(i)), **n}) for i, n in enumerate(numbers)]


def together_of(configs, console, **options):
    ((runs),) = [[run for _, run in batch] for batch in together.batches(configs)]
    return train_together(runs, console, lines=False, **options)


def rows_of(workdir):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_rows(Path(workdir) / "metrics.jsonl")]


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


@pytest.mark.parametrize("how", ["vmap", pytest.param("map", marks=pytest.mark.deep)])
def test_each_is_the_run_alone(tiny, tmp_path, console, how, monkeypatch):
    tiny.train.epochs, tiny.train.early_stop_epochs, tiny.cache.where = 6, 1, "memory"
    if how == "vmap":  # which is for dense layers
        first, second = tiny.strategy.phases
        tiny.strategy.phases = (first, dataclasses.replace(second, rules=first.rules))
    monkeypatch.setattr(together, "how", lambda run: how, raising=False)
    both, alone = (configs_of(tiny, tmp_path / name, NUMBERS) for name in ("both", "alone"))
    programs = make_steps.cache_info().misses
    results = together_of(both, console)
    assert make_steps.cache_info().misses == programs + 2  # one a phase
    stopped = set()
    for config, other, result in zip(both, alone, results, strict=True):
        expected = train(other, console, lines=False)
        same = ("valid", "test", "gap", "best", "phases", "seed", "data")
        for key in same:
            a, b = (json.loads(json.dumps(r[key])) for r in (result, expected))
            for record in (*a, *b) if key == "phases" else ():
                del record["seconds"]
            assert_alike(a, b)
        assert_alike(rows_of(config.workdir), rows_of(other.workdir))
        stopped.add(tuple(phase["steps"] for phase in expected["phases"]))
        with Checkpoints(Path(config.workdir)) as mine, Checkpoints(Path(other.workdir)) as theirs:
            assert (mine.best, mine.latest) == (theirs.best, theirs.latest)
            a, b = mine.read_params(mine.best), theirs.read_params(theirs.best)
        assert a.keys() == b.keys()
        for path in a:
            np.testing.assert_allclose(a[path], b[path], rtol=1e-5, atol=1e-5)
    assert len(stopped) > 1  # early stopping is each run's own
    # What is finished is read.
    assert [r["parameters_digest"] for r in together_of(both, console)] == [r["parameters_digest"] for r in results]


def test_one_that_diverges_leaves_the_others_alone(tiny, tmp_path, console):
    tiny.optim.name = "sgd"
    tiny.strategy.phases = tiny.strategy.phases[:1]
    numbers = ({"optim.lr": 0.01}, {"optim.lr": 1e30})
    good, bad = together_of(configs_of(tiny, tmp_path, numbers), console)
    assert isinstance(bad, TrainingStopped)
    assert "not finite at step" in str(bad)
    assert (
        good["valid"]["accuracy"]
        == train(configs_of(tiny, tmp_path / "alone", numbers)[0], console)["valid"]["accuracy"]
    )


@pytest.mark.deep
def test_what_died_goes_on_wherever_each_stands(tiny, tmp_path, console, monkeypatch):
    tiny.train.checkpoint_epochs = 0.4
    whole = together_of(configs_of(tiny, tmp_path / "whole", NUMBERS[:2]), console)
    configs = configs_of(tiny, tmp_path / "died", NUMBERS[:2])

    class Death(BaseException):
        pass

    saves, save = [], Checkpoints.save

    def dying(self, *args):
        saves.append(1)
        if len(saves) == 4:  # between two runs' checkpoints of the same step
            self.wait()
            raise Death
        save(self, *args)
        self.wait()

    monkeypatch.setattr(Checkpoints, "save", dying)
    with pytest.raises(Death):
        together_of(configs, console)
    monkeypatch.undo()
    results = together_of(configs, console)
    for result, expected in zip(results, whole, strict=True):
        assert_alike(result["best"], expected["best"])
        assert_alike(result["test"]["loss"], expected["test"]["loss"])


def test_what_shapes_a_program_or_the_pictures_keeps_runs_apart(tiny):
    base = schema.parse(tiny)

    def sizes(*numbers):
        configs = [schema.override(base, n) for n in numbers]
        assert len({together.alike(c) for c in configs}) == 1
        return [len(batch) for batch in together.batches(configs)]

    assert sizes({"optim.lr": 0.1}, {"optim.lr": 0.2}, {"optim.weight_decay": 0.1}) == [2, 1]
    assert sizes({}, {"optim.name": "momentum"}, {"optim.name": "sgd"}) == [1, 1, 1]
    for change in ({"seed": 1}, {"train.batch_size": 4}, {"data.labels_per_class": 10}, {"augment.flip": True}):
        assert together.alike(schema.override(base, change)) != together.alike(base)
    assert together.alike(schema.override(base, {"strategy.temperature": 2.0})) == together.alike(base)


def test_runs_whose_convolutions_learn_take_turns_on_a_processor(tiny, monkeypatch):
    monkeypatch.undo()
    for phases, expected in ((tiny.strategy.phases, True), (tiny.strategy.phases[:1], False)):
        tiny.strategy.phases = phases
        config = schema.parse(tiny)
        both = [config, schema.override(config, {"optim.lr": 0.5})]
        sizes = [len(batch) for batch in together.batches(both)]
        assert sizes == ([1, 1] if expected and jax.default_backend() == "cpu" else [2])


def test_a_sweep_over_numbers_compiles_once_opens_test_for_the_winner_and_draws_a_map(tiny, tmp_path, console):
    tiny.workdir = str(tmp_path / "sweep")
    tiny.strategy.phases = tiny.strategy.phases[:1]
    tiny.report.figures = True
    tiny.sweep = {"optim.lr": [0.001, 0.02], "optim.weight_decay": [0.01, 0.1, 0.3], "seed": [0, 1]}
    programs = make_steps.cache_info().misses
    summary = sweep.run(schema.parse(tiny), console)
    # The program for six runs serves both seeds; the winners are only judged.
    assert make_steps.cache_info().misses == programs + 1
    assert len(summary["cells"]) == 12
    assert sum(cell["test"] is not None for cell in summary["cells"]) == 2
    assert (tmp_path / "sweep" / "figures" / "heat_map.png").stat().st_size > 1000
    assert "figures/heat_map.png" in (tmp_path / "sweep" / "report.md").read_text()
