"""Strategies from config to result: what they start from, what they keep, and what a death or an edit changes."""

import functools
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tests.run.test_resume import outcome, rows_of, train_dying
from tljax import config as schema
from tljax.data import RawDataset, Split
from tljax.data.sources import registry
from tljax.errors import UserError
from tljax.models import params as params_lib
from tljax.run import evaluate, teachers
from tljax.run.experiment import prepare
from tljax.run.train import train
from tljax.storage.checkpoints import CheckpointManager
from tljax.weights.convert import convert

SMALL = {
    "resnet8": {"depths": (1,), "widths": (8,)},
    "vgg11_bn": {"blocks": ((6,), (8,))},
}


def base(workdir, backbone="vgg11_bn", **settings):
    """A config of a short run on three digits."""
    c = schema.default()
    c.workdir = str(workdir)
    c.data.classes, c.data.labels_per_class, c.data.unlabelled = (1, 2, 3), 12, 80
    c.model.backbone, c.model.options, c.model.preprocess = backbone, SMALL[backbone], "unit"
    c.strategy.name, c.strategy.unlabelled_ratio = "scratch", 1
    c.optim.name, c.optim.lr, c.train.batch_size, c.train.epochs = "momentum", 0.01, 12, 2
    c.report.figures = c.report.tensorboard = False
    return schema.override(schema.parse(c), settings)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two finished runs: a source network for other digits, with a hidden layer, and a teacher of another family."""
    folder, quiet = tmp_path_factory.mktemp("runs"), Console(quiet=True)
    train(base(folder / "source", **{"data.classes": (5, 6, 7, 8), "model.hidden": (5,)}), quiet)
    train(base(folder / "teacher", "resnet8"), quiet)
    return folder


def from_source(runs, workdir, strategy, **settings):
    """A config that starts from the source."""
    common = {"strategy.name": strategy, "model.weights": f"workdir:{runs}/source", "model.preprocess": None}
    return base(workdir, **common | settings)


@pytest.fixture
def start(runs, tmp_path, console):
    """Runs a strategy from the source and returns its config and result."""

    def run(strategy, workdir="run", **settings):
        config = from_source(runs, tmp_path / workdir, strategy, **settings)
        return config, train(config, console)

    return run


def best_of(workdir):
    with CheckpointManager(Path(workdir)) as checkpoints:
        return checkpoints.load_variables(checkpoints.best)


MICRO = {"strategy.neurons.scope": "global", "strategy.neurons.criterion": "gradient_weight", "strategy.lr_scale": 1.0}
MICRO |= {"strategy.neurons.count": 6, "strategy.probe_fraction": 0.2, "optim.lr": 0.2, "optim.l2_sp": 0.01}
MICRO |= {"augment.flip": True, "train.patience_epochs": 1.0, "train.epochs": 4, "train.checkpoint_epochs": 0.4}
FIXMATCH = {"strategy.ema_decay": 0.8, "strategy.threshold": 0.35, "optim.lr": 0.05}
FIXMATCH |= {"data.split": "first_per_class", "data.unlabelled": -1}
WHOLE = {"micro": MICRO, "fixmatch": FIXMATCH | {"train.checkpoint_epochs": 0.4}}


@pytest.fixture(scope="module")
def whole(runs, tmp_path_factory):
    """A function of a strategy: config and result of a run of it that nothing interrupts."""

    @functools.cache
    def run(strategy):
        config = from_source(runs, tmp_path_factory.mktemp("whole") / "run", strategy, **WHOLE[strategy])
        return config, train(config, Console(quiet=True))

    return run


@pytest.mark.parametrize(("strategy", "at"), [("micro", 7), ("fixmatch", 4)])
def test_a_death_in_the_middle_of_a_phase_leads_to_the_same_bits(whole, strategy, at, tmp_path, console, monkeypatch):
    config, expected = whole(strategy)
    dying = schema.override(config, {"workdir": str(tmp_path / "dying")})
    assert train_dying(dying, console, monkeypatch, at) is None
    with CheckpointManager(tmp_path / "dying") as checkpoints:
        progress = checkpoints.progress(checkpoints.latest)
    assert progress["step"] > 0
    # Neurons that were chosen before are not chosen again.
    assert (progress["channels"] is not None) == (strategy == "micro")
    assert outcome(train(dying, console)) == outcome(expected)
    assert rows_of(tmp_path / "dying") == rows_of(Path(config.workdir))


def moved_channels(config, plan):
    """By layer, which channels a run moved in the phase that trains single ones; others keep their bits."""
    with CheckpointManager(Path(config.workdir)) as checkpoints:
        last = checkpoints.load_variables(checkpoints.latest)
    source = best_of(config.model.weights.removeprefix("workdir:"))
    moved = {}
    for path in source:
        if not path.startswith("head/"):
            moved[path] = (source[path] != last[path]).reshape(-1, last[path].shape[-1]).any(0)
    assert {path for path, channels in moved.items() if channels.any()} <= {p for x in plan.layers.values() for p in x}
    return {layer: np.any([moved[path] for path in paths], axis=0) for layer, paths in plan.layers.items()}


def test_single_neurons_learn_and_all_others_keep_their_bits(whole):
    config, result = whole("micro")
    head, neurons = result["phases"]
    assert head["frozen_unchanged"]
    assert neurons["frozen_unchanged"]
    moved = moved_channels(config, prepare(config).plans[1])
    assert 0 < sum(channels.sum() for channels in moved.values()) <= MICRO["strategy.neurons.count"]
    backbone = [x for path, x in best_of(config.workdir).items() if not path.startswith("head/")]
    assert neurons["trainable_parameters"] < sum(x.size for x in backbone) / 2


def test_hints_then_soft_labels_then_not_forgetting_then_weights_like_any_others(start, runs, tmp_path, console):
    """Runs with further outputs are teachers and sources for the next ones; the last map's own classifier lives on."""
    # The middle one of three stages has hints.
    options = {"model.backbone": "vgg11", "model.options": {"blocks": ((6, 6), (8,))}, "train.epochs": 1}
    teacher = {"strategy.teachers": (f"workdir:{runs}/teacher",), "model.hidden": (5,)}
    first, result = start("fitnets", **options, **teacher, **{"model.weights": None, "model.preprocess": "unit"})
    assert [p["name"] for p in result["phases"]] == ["hints", "distillation"]
    assert result["teachers"]["teacher0"]["name"] == f"workdir:{runs}/teacher"
    leaves = best_of(first.workdir)
    assert "head/hint_stage1/conv/kernel" in leaves
    assert evaluate.evaluate(first, console)["test"] == result["test"]

    further = {"model.weights": f"workdir:{first.workdir}", "data.classes": (4, 9), "model.hidden": (), **options}
    second, result = start("lwf", "second", **further)
    prepared = prepare(second)
    began = prepared.load_variables()
    pictures = prepared.data.valid.images[:5].astype(np.float32) / 255
    pictures = np.repeat(pictures, 3, axis=-1)
    model = params_lib.merge(params_lib.flatten_model(prepared.predictor.model).graphdef, began)
    source = teachers.find_teacher(second.model.weights, None, prepared.predictor.preprocess)
    theirs = params_lib.merge(params_lib.flatten_model(source.model).graphdef, source.load())(pictures)
    own = model.head.auxiliary(model.features(pictures))["source"]
    np.testing.assert_array_equal(own, theirs)
    assert own.shape == (5, 3)
    assert evaluate.evaluate(second, console)["valid"] == result["valid"]
    row = rows_of(tmp_path / "second")[-1]["train"]
    assert {"cross_entropy", "lwf"} <= set(row)

    written = convert(f"workdir:{second.workdir}", tmp_path / "out.safetensors")
    assert written.tensors == len([p for p in began if "source" not in p and "hint" not in p])

    weights = {"model.weights": f"workdir:{second.workdir}"}
    third = prepare(from_source(runs, tmp_path / "third", "feature_extraction", **further | weights))
    assert third.source.describe()["name"] == f"workdir:{second.workdir}"
    before, after = best_of(second.workdir), third.load_variables()
    assert not [p for p in after if "source" in p or "hint" in p]
    for path in after:
        if not path.startswith("head/"):
            np.testing.assert_array_equal(before[path], after[path])
    # As a teacher, it is its own classifier.
    teacher = teachers.find_teacher(f"workdir:{second.workdir}", None, prepared.predictor.preprocess)
    assert (teacher.num_classes, teacher.class_names) == (2, ("4", "9"))
    taught = params_lib.merge(params_lib.flatten_model(teacher.model).graphdef, teacher.load())(pictures)
    network, best, _ = evaluate.finished(second)
    np.testing.assert_array_equal(
        taught, params_lib.merge(params_lib.flatten_model(network.model).graphdef, best)(pictures)
    )


def test_two_heads_are_built_trained_and_judged_without_a_word_about_the_head(start, console):
    config, result = start("micro_two_heads", **{"train.epochs": 1, "strategy.neurons.scope": "layer"})
    assert "head/hidden0/kernel" in best_of(config.workdir)
    assert evaluate.evaluate(config, console)["valid"] == result["valid"]
    # So many neurons of every layer.
    (plan,), (phase,) = prepare(config).plans, result["phases"]
    moved = moved_channels(config, plan)
    assert phase["frozen_unchanged"]
    assert all(channels.sum() <= plan.channel_counts[layer] < len(channels) for layer, channels in moved.items())
    assert all(channels.any() for channels in moved.values())


def test_what_is_kept_of_averaged_weights_is_the_average(whole, console):
    config, result = whole("fixmatch")
    with CheckpointManager(Path(config.workdir)) as checkpoints:
        kept, network = checkpoints.load_variables(checkpoints.latest), prepare(config).predictor
        leaves = {p: x for p, x in network.flat.variables.items() if p.endswith(("kernel", "bias", "scale"))}
        like = {p: np.zeros(x.shape, x.dtype) for p, x in leaves.items()}
        last = checkpoints.restore(checkpoints.latest, {"raw_params": network.mesh.put(like)})["raw_params"]
    assert all((np.asarray(last[p]) != kept[p]).any() for p in like)
    again = evaluate.evaluate(config, console)
    assert again["parameters_digest"] == result["parameters_digest"]
    assert (again["valid"], again["test"]) == (result["valid"], result["test"])


def test_objectives_of_the_config_replace_those_of_every_phase(runs, tmp_path):
    objectives = (("cross_entropy", 0.5), ("distillation", 0.5))
    teacher = {"strategy.teachers": (f"workdir:{runs}/teacher",), "strategy.losses": objectives}
    plans = prepare(from_source(runs, tmp_path / "run", "lp_ft", **teacher)).plans
    assert [plan.phase.name for plan in plans] == ["linear probe", "fine-tune"]
    for plan in plans:
        assert plan.phase.losses == objectives
        assert plan.hparams["loss_weights"] == (0.5, 0.5)
        assert {"teachers", "teacher_logits"} <= plan.spec.requires


def test_the_labels_of_unlabelled_pictures_change_nothing(tmp_path, console, monkeypatch):
    settings = FIXMATCH | {"strategy.name": "fixmatch", "train.epochs": 1}
    digests, load = [], registry.load_source

    def shuffled(*arguments):
        source = load(*arguments)
        labels, labelled = source.train.labels.copy(), 0
        for c in (1, 2, 3):
            labelled = max(labelled, np.flatnonzero(labels == c)[11])
        rest = labelled + 1 + np.flatnonzero(np.isin(labels[labelled + 1 :], (1, 2, 3)))
        labels[rest] = np.random.default_rng(0).permutation(labels[rest])
        assert (labels != source.train.labels).sum() > 50
        return RawDataset(Split(source.train.images, labels), source.test, source.classes)

    for name in ("true", "shuffled"):
        monkeypatch.setattr(registry, "load_source", load if name == "true" else shuffled)
        digests.append(train(base(tmp_path / name, **settings), console)["parameters_digest"])
    assert digests[0] == digests[1]


OWN = """
import jax.numpy as jnp
from tljax.config import Phase
from tljax.losses import loss

@loss("source_maps")
def calm(outputs, batch, references, hparams):
    source = references["source"]["maps"]
    return hparams["calm"] * sum(jnp.abs(outputs["maps"][s] - m).mean() for s, m in source.items())

def mine(config, stages, lr):
    rules = (("head/.*", 1.0), (f"{stages[-1]}/.*", 0.5), (".*", 0.0))
    return [Phase("mine", rules, losses=(("cross_entropy", 1.0), (__file__ + ":calm", 1.0)))]
"""


def test_a_strategy_and_an_objective_in_a_file_of_the_users_own(start, tmp_path, console):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    settings = {"strategy.hparams": {"calm": 0.1}, "train.epochs": 1}
    config, result = start(f"{path}:mine", **settings)
    sha = hashlib.sha256(OWN.encode()).hexdigest()
    assert result["files"] == {f"{path}:mine": sha, f"{path}:calm": sha}
    assert json.loads((tmp_path / "run" / "inputs.json").read_text())["files"] == result["files"]
    assert result["phases"][0]["name"] == "mine"
    calm = rows_of(tmp_path / "run")[0]["train"][f"{path}:calm"]
    assert evaluate.evaluate(config, console)["test"] == result["test"]
    path.write_text(OWN.replace("jnp.abs", "jnp.square"))
    os.utime(path, ns=(1, 1))
    with pytest.raises(UserError, match=r"holds another run; it differs in files\.") as error:
        start(f"{path}:mine", **settings)
    assert "\n" not in str(error.value)
    start(f"{path}:mine", "edited", **settings)
    assert rows_of(tmp_path / "edited")[0]["train"][f"{path}:calm"] != calm
