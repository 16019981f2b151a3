"""Strategies from config to result: what they start from, what they keep, and what a death or an edit changes."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from tests.run.test_resume import Death, outcome, rows_of
from tljax import config as schema
from tljax.checkpoints import Checkpoints
from tljax.data import Source, Split, sources
from tljax.errors import UserError
from tljax.models import state as leaves_of
from tljax.report.log import Bar
from tljax.run import evaluate, teachers
from tljax.run.prepare import prepare
from tljax.run.train import train
from tljax.weights.convert import convert

SMALL = {
    "resnet8": {"depths": (1, 1), "widths": (6, 8)},
    "vgg11_bn": {"blocks": ((6, 6), (8,))},
}


def base(workdir, backbone="resnet8", **settings):
    """A config of a short run on three digits."""
    c = schema.default()
    c.workdir = str(workdir)
    c.data.classes, c.data.labels_per_class, c.data.unlabelled = (1, 2, 3), 12, 80
    c.model.backbone, c.model.options, c.model.preprocess = backbone, SMALL[backbone], "unit"
    c.strategy.name, c.strategy.unlabelled_ratio = "scratch", 1
    c.optim.lr, c.train.batch_size, c.train.epochs = 0.01, 12, 2
    c.report.figures = c.report.tensorboard = False
    return schema.override(schema.parse(c), settings)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two finished runs: a source network for other digits, with a hidden layer, and a teacher of another family."""
    from rich.console import Console

    folder, quiet = tmp_path_factory.mktemp("runs"), Console(quiet=True)
    train(base(folder / "source", **{"data.classes": (5, 6, 7, 8), "model.hidden": (5,)}), quiet)
    train(base(folder / "teacher", "vgg11_bn", **{"train.epochs": 4}), quiet)
    return folder


@pytest.fixture
def start(runs, tmp_path, console):
    """Runs a strategy from the source and returns its config and result."""

    def run(strategy, workdir="run", **settings):
        common = {"strategy.name": strategy, "model.weights": f"workdir:{runs}/source", "model.preprocess": None}
        config = base(tmp_path / workdir, **common | settings)
        return config, train(config, console)

    return run


def best_of(workdir):
    with Checkpoints(Path(workdir)) as checkpoints:
        return checkpoints.read_params(checkpoints.best)


def dies(monkeypatch, at):
    """Lets the process die at the metrics of a step, once."""
    alive, seen = Bar.steps, []

    def dying(self, count, *args):
        alive(self, count, *args)
        before = len(seen)
        seen.extend([1] * count)
        if before < at <= len(seen):
            raise Death

    monkeypatch.setattr(Bar, "steps", dying)


MICRO = {"strategy.neurons.scope": "global", "strategy.neurons.count": 12, "strategy.lr_scale": 1.0}
MICRO |= {"strategy.neurons.criterion": "gradient_weight", "optim.l2_sp": 0.01, "augment.flip": True}


@pytest.mark.parametrize(
    ("strategy", "settings"),
    [("micro", MICRO), ("fixmatch", {"strategy.average": 0.8, "strategy.threshold": 0.4})],
)
def test_a_death_in_the_middle_of_a_phase_leads_to_the_same_bits(start, strategy, settings, tmp_path, monkeypatch):
    settings = {"train.checkpoint_epochs": 0.4, "optim.lr": 0.05, "train.epochs": 4} | settings
    _, whole = start(strategy, **settings)
    dies(monkeypatch, at=9)
    with pytest.raises(Death):
        start(strategy, "dying", **settings)
    monkeypatch.undo()
    with Checkpoints(tmp_path / "dying") as checkpoints:
        progress = checkpoints.progress(checkpoints.latest)
    assert progress["step"] > 0
    # Neurons that were chosen before are not chosen again.
    assert (progress["neurons"] is not None) == (strategy == "micro")
    _, result = start(strategy, "dying", **settings)
    assert outcome(result) == outcome(whole)
    assert rows_of(tmp_path / "dying") == rows_of(tmp_path / "run")


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_single_neurons_learn_and_all_others_keep_their_bits(start, tmp_path, scope):
    settings = {"strategy.neurons.scope": scope, "train.early_stop_epochs": 1.0, "train.epochs": 6}
    config, result = start("micro", **settings, **{"strategy.probe_fraction": 0.2, "optim.lr": 0.2})
    head, neurons = result["phases"]
    assert head["frozen_unchanged"]
    assert neurons["frozen_unchanged"]
    plan = prepare(config).plans[1]
    with Checkpoints(tmp_path / "run") as checkpoints:
        last = checkpoints.read_params(checkpoints.latest)
    source = best_of(config.model.weights.removeprefix("workdir:"))
    moved = {}
    for path in source:
        if not path.startswith("head/"):
            moved[path] = (source[path] != last[path]).reshape(-1, last[path].shape[-1]).any(0)
    assert {path for path, channels in moved.items() if channels.any()} <= {p for x in plan.layers.values() for p in x}
    for layer, paths in plan.layers.items():
        together = np.any([moved[path] for path in paths], axis=0)
        assert scope == "global" or together.sum() <= plan.neurons[layer]
    assert sum(np.any([moved[p] for p in paths], axis=0).sum() for paths in plan.layers.values()) > 0
    assert neurons["learned_parameters"] < sum(x.size for p, x in source.items() if not p.startswith("head/")) / 5


def test_hints_then_soft_labels_then_not_forgetting_then_weights_like_any_others(start, runs, tmp_path, console):
    """Runs with further outputs are teachers and sources for the next ones; the last map's own classifier lives on."""
    first, result = start("fitnets", **{"strategy.teachers": (f"workdir:{runs}/teacher",), "model.hidden": (5,)})
    assert [p["name"] for p in result["phases"]] == ["hints", "distillation"]
    assert result["teachers"]["teacher0"]["name"] == f"workdir:{runs}/teacher"
    leaves = best_of(first.workdir)
    assert "head/hint_stage1/conv/kernel" in leaves
    assert evaluate.evaluate(first, console)["test"] == result["test"]

    further = {"model.weights": f"workdir:{first.workdir}", "data.classes": (4, 9), "model.hidden": ()}
    second, result = start("lwf", "second", **further)
    prepared = prepare(second)
    began = prepared.load_weights()
    pictures = prepared.data.valid.images[:5].astype(np.float32) / 255
    pictures = np.repeat(pictures, 3, axis=-1)
    model = leaves_of.merge(leaves_of.split(prepared.network.model).graphdef, began)
    source = teachers.find(second.model.weights, None, prepared.network.preprocess)
    theirs = leaves_of.merge(leaves_of.split(source.model).graphdef, source.read())(pictures)
    own = model.head.auxiliary(model.features(pictures))["source"]
    np.testing.assert_array_equal(own, theirs)
    assert own.shape == (5, 3)
    assert evaluate.evaluate(second, console)["valid"] == result["valid"]
    row = rows_of(tmp_path / "second")[-1]["train"]
    assert {"cross_entropy", "lwf"} <= set(row)

    written = convert(f"workdir:{second.workdir}", tmp_path / "out.safetensors")
    assert written.tensors == len([p for p in began if "source" not in p and "hint" not in p])

    third, result = start("feature_extraction", "third", **further | {"model.weights": f"workdir:{second.workdir}"})
    assert result["weights"]["name"] == f"workdir:{second.workdir}"
    before, after = best_of(second.workdir), best_of(third.workdir)
    assert not [p for p in after if "source" in p or "hint" in p]
    for path in after:
        if not path.startswith("head/"):
            np.testing.assert_array_equal(before[path], after[path])
    # As a teacher, it is its own classifier.
    taught = {"strategy.teachers": (f"workdir:{second.workdir}",), "train.epochs": 1, "data.classes": (4, 9)}
    _, result = start("distillation", "fourth", **taught)
    assert result["phases"][0]["name"] == "distillation"


def test_two_heads_are_built_trained_and_judged_without_a_word_about_the_head(start, console):
    config, result = start("micro_two_heads", **{"train.epochs": 1})
    assert "head/hidden0/kernel" in best_of(config.workdir)
    assert evaluate.evaluate(config, console)["valid"] == result["valid"]


def test_what_is_kept_of_averaged_weights_is_the_average(start, tmp_path, console):
    config, result = start("fixmatch", **{"strategy.average": 0.9, "data.unlabelled": -1, "optim.lr": 0.05})
    with Checkpoints(tmp_path / "run") as checkpoints:
        kept, network = checkpoints.read_params(checkpoints.latest), prepare(config).network
        leaves = {p: x for p, x in network.leaves().items() if p.endswith(("kernel", "bias", "scale"))}
        like = {p: np.zeros(x.shape, x.dtype) for p, x in leaves.items()}
        last = checkpoints.restore(checkpoints.latest, {"learned": network.mesh.put(like)})["learned"]
    assert all((np.asarray(last[p]) != kept[p]).any() for p in like)
    again = evaluate.evaluate(config, console)
    assert again["parameters_digest"] == result["parameters_digest"]
    assert (again["valid"], again["test"]) == (result["valid"], result["test"])


def test_objectives_of_the_config_replace_those_of_every_phase(start, runs, tmp_path):
    objectives = (("cross_entropy", 0.5), ("distillation", 0.5))
    teacher = {"strategy.teachers": (f"workdir:{runs}/teacher",), "strategy.objectives": objectives}
    _, result = start("lp_ft", **teacher)
    assert [p["name"] for p in result["phases"]] == ["linear probe", "fine-tune"]
    assert all({"cross_entropy", "distillation"} <= set(row["train"]) for row in rows_of(tmp_path / "run"))


def test_the_labels_of_unlabelled_pictures_change_nothing(tmp_path, console, monkeypatch):
    settings = {"strategy.name": "fixmatch", "data.split": "first_per_class", "data.unlabelled": -1}
    settings |= {"strategy.threshold": 0.35, "train.epochs": 1}
    digests, load = [], sources.load

    def shuffled(*arguments):
        source = load(*arguments)
        labels, labelled = source.train.labels.copy(), 0
        for c in (1, 2, 3):
            labelled = max(labelled, np.flatnonzero(labels == c)[11])
        rest = labelled + 1 + np.flatnonzero(np.isin(labels[labelled + 1 :], (1, 2, 3)))
        labels[rest] = np.random.default_rng(0).permutation(labels[rest])
        assert (labels != source.train.labels).sum() > 50
        return Source(Split(source.train.images, labels), source.test, source.classes)

    for name in ("true", "shuffled"):
        monkeypatch.setattr(sources, "load", load if name == "true" else shuffled)
        digests.append(train(base(tmp_path / name, **settings), console)["parameters_digest"])
    assert digests[0] == digests[1]


OWN = """
import jax.numpy as jnp
from tljax.config import Phase
from tljax.objectives import objective

@objective("source_maps")
def calm(outputs, batch, reference, hyper):
    return hyper["calm"] * sum(jnp.abs(outputs["maps"][s] - m).mean() for s, m in reference["source"]["maps"].items())

def mine(config, stages, lr):
    rules = (("head/.*", 1.0), (f"{stages[-1]}/.*", 0.5), (".*", 0.0))
    return [Phase("mine", rules, objectives=(("cross_entropy", 1.0), (__file__ + ":calm", 1.0)))]
"""


def test_a_strategy_and_an_objective_in_a_file_of_the_users_own(start, tmp_path, console):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    settings = {"strategy.numbers": {"calm": 0.1}}
    config, result = start(f"{path}:mine", **settings)
    sha = hashlib.sha256(OWN.encode()).hexdigest()
    assert result["files"] == {f"{path}:mine": sha, f"{path}:calm": sha}
    assert json.loads((tmp_path / "run" / "inputs.json").read_text())["files"] == result["files"]
    assert result["phases"][0]["name"] == "mine"
    assert f"{path}:calm" in rows_of(tmp_path / "run")[0]["train"]
    assert evaluate.evaluate(config, console)["test"] == result["test"]
    path.write_text(OWN.replace("jnp.abs", "jnp.square"))
    os.utime(path, ns=(1, 1))
    with pytest.raises(UserError, match=r"holds another run; it differs in files\.") as error:
        start(f"{path}:mine", **settings)
    assert "\n" not in str(error.value)
    start(f"{path}:mine", "edited", **settings)
