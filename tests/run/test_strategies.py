"""Strategies from config to result: their sources, frozen parameters, interruptions and custom files."""

import functools
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tests.run.test_resume import metric_rows, reproducible_entries, train_killed
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


def make_config(workdir, backbone="vgg11_bn", **settings):
    """Return the config of a short run on three digits."""
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
    """Return the folder of two finished runs.

    These are `source`, trained on other digits and with a hidden layer, and `teacher`, of another network family.
    """
    folder = tmp_path_factory.mktemp("runs")
    quiet = Console(quiet=True)
    train(make_config(folder / "source", **{"data.classes": (5, 6, 7, 8), "model.hidden": (5,)}), quiet)
    train(make_config(folder / "teacher", "resnet8"), quiet)
    return folder


def from_source(runs, workdir, strategy, **settings):
    """Return a config that starts from the weights of `source`."""
    common = {"strategy.name": strategy, "model.weights": f"workdir:{runs}/source", "model.preprocess": None}
    return make_config(workdir, **common | settings)


@pytest.fixture
def run_strategy(runs, tmp_path, console):
    """Return a function that trains a strategy from `source` and returns config and result."""

    def run(strategy, workdir="run", **settings):
        config = from_source(runs, tmp_path / workdir, strategy, **settings)
        return config, train(config, console)

    return run


def load_best(workdir):
    """Return the variables of the best checkpoint."""
    with CheckpointManager(Path(workdir)) as checkpoints:
        return checkpoints.load_variables(checkpoints.best)


MICRO = {"strategy.neurons.scope": "global", "strategy.neurons.criterion": "gradient_weight", "strategy.lr_scale": 1.0}
MICRO |= {"strategy.neurons.count": 6, "strategy.probe_fraction": 0.2, "optim.lr": 0.2, "optim.l2_sp": 0.01}
MICRO |= {"augment.flip": True, "train.patience_epochs": 1.0, "train.epochs": 4, "train.checkpoint_epochs": 0.4}
FIXMATCH = {"strategy.ema_decay": 0.8, "strategy.threshold": 0.35, "optim.lr": 0.05}
FIXMATCH |= {"data.split": "first_per_class", "data.unlabelled": -1}
UNINTERRUPTED = {"micro": MICRO, "fixmatch": FIXMATCH | {"train.checkpoint_epochs": 0.4}}


@pytest.fixture(scope="module")
def uninterrupted(runs, tmp_path_factory):
    """Return a function from a strategy to config and result of an uninterrupted run."""

    @functools.cache
    def run(strategy):
        workdir = tmp_path_factory.mktemp(strategy) / "run"
        config = from_source(runs, workdir, strategy, **UNINTERRUPTED[strategy])
        return config, train(config, Console(quiet=True))

    return run


@pytest.mark.parametrize(("strategy", "at"), [("micro", 7), ("fixmatch", 4)])
def test_interrupted_phase_resumes_bit_for_bit(uninterrupted, strategy, at, tmp_path, console, monkeypatch):
    config, expected = uninterrupted(strategy)
    killed = schema.override(config, {"workdir": str(tmp_path / "killed")})
    assert train_killed(killed, console, monkeypatch, at) is None
    with CheckpointManager(tmp_path / "killed") as checkpoints:
        progress = checkpoints.progress(checkpoints.latest)
    assert progress["step"] > 0
    # The checkpoint has the selected neurons: they are not selected again.
    assert (progress["channels"] is not None) == (strategy == "micro")
    assert reproducible_entries(train(killed, console)) == reproducible_entries(expected)
    assert metric_rows(tmp_path / "killed") == metric_rows(Path(config.workdir))


def changed_channels(config, plan):
    """Return {layer: [channels], whether training changed the channel}; assert that other layers are unchanged."""
    with CheckpointManager(Path(config.workdir)) as checkpoints:
        last = checkpoints.load_variables(checkpoints.latest)
    source = load_best(config.model.weights.removeprefix("workdir:"))
    changed = {}
    for path in source:
        if not path.startswith("head/"):
            changed[path] = (source[path] != last[path]).reshape(-1, last[path].shape[-1]).any(0)
    layer_paths = {path for paths in plan.layers.values() for path in paths}
    assert {path for path, channels in changed.items() if channels.any()} <= layer_paths
    return {layer: np.any([changed[path] for path in paths], axis=0) for layer, paths in plan.layers.items()}


def test_micro_trains_selected_neurons_only(uninterrupted):
    config, result = uninterrupted("micro")
    head, neurons = result["phases"]
    assert head["frozen_unchanged"]
    assert neurons["frozen_unchanged"]
    changed = changed_channels(config, prepare(config).plans[1])
    assert 0 < sum(channels.sum() for channels in changed.values()) <= MICRO["strategy.neurons.count"]
    backbone = [x for path, x in load_best(config.workdir).items() if not path.startswith("head/")]
    assert neurons["trainable_parameters"] < sum(x.size for x in backbone) / 2


def test_auxiliary_outputs_across_runs(run_strategy, runs, tmp_path, console):
    """Runs with auxiliary outputs (FitNets, then LwF) are sources and teachers of later runs without these outputs."""
    # FitNets reads hints from the middle one of three stages.
    options = {"model.backbone": "vgg11", "model.options": {"blocks": ((6, 6), (8,))}, "train.epochs": 1}
    teacher = {"strategy.teachers": (f"workdir:{runs}/teacher",), "model.hidden": (5,)}
    first, result = run_strategy("fitnets", **options, **teacher, **{"model.weights": None, "model.preprocess": "unit"})
    assert [p["name"] for p in result["phases"]] == ["hints", "distillation"]
    assert result["teachers"]["teacher0"]["name"] == f"workdir:{runs}/teacher"
    assert "head/hint_stage1/conv/kernel" in load_best(first.workdir)
    assert evaluate.evaluate(first, console)["test"] == result["test"]

    # LwF: the classifier of the source stays, with the same logits.
    settings = {"model.weights": f"workdir:{first.workdir}", "data.classes": (4, 9), "model.hidden": (), **options}
    second, result = run_strategy("lwf", "second", **settings)
    experiment = prepare(second)
    preprocess = experiment.predictor.preprocess
    initial = experiment.load_variables()
    images = np.repeat(experiment.data.valid.images[:5].astype(np.float32) / 255, 3, axis=-1)
    model = params_lib.merge(experiment.predictor.flat.graphdef, initial)
    source = teachers.find_teacher(second.model.weights, None, preprocess)
    source_logits = model.head.auxiliary(model.features(images))["source"]
    np.testing.assert_array_equal(source_logits, params_lib.merge(source.flat.graphdef, source.load())(images))
    assert source_logits.shape == (5, 3)
    assert evaluate.evaluate(second, console)["valid"] == result["valid"]
    row = metric_rows(tmp_path / "second")[-1]["train"]
    assert {"cross_entropy", "lwf"} <= set(row)

    written = convert(f"workdir:{second.workdir}", tmp_path / "out.safetensors")
    assert written.tensors == len([path for path in initial if "source" not in path and "hint" not in path])

    weights = {"model.weights": f"workdir:{second.workdir}"}
    third = prepare(from_source(runs, tmp_path / "third", "feature_extraction", **settings | weights))
    assert third.source.describe()["name"] == f"workdir:{second.workdir}"
    trained = load_best(second.workdir)
    loaded = third.load_variables()
    assert not [path for path in loaded if "source" in path or "hint" in path]
    for path in loaded:
        if not path.startswith("head/"):
            np.testing.assert_array_equal(trained[path], loaded[path])
    # As a teacher, the LwF run is its main classifier only.
    teacher = teachers.find_teacher(f"workdir:{second.workdir}", None, preprocess)
    assert (teacher.num_classes, teacher.class_names) == (2, ("4", "9"))
    teacher_logits = params_lib.merge(teacher.flat.graphdef, teacher.load())(images)
    predictor, variables, _ = evaluate.load_finished(second)
    np.testing.assert_array_equal(teacher_logits, params_lib.merge(predictor.flat.graphdef, variables)(images))


def test_micro_two_heads_sets_its_head(run_strategy, console):
    config, result = run_strategy("micro_two_heads", **{"train.epochs": 1, "strategy.neurons.scope": "layer"})
    assert "head/hidden0/kernel" in load_best(config.workdir)
    assert evaluate.evaluate(config, console)["valid"] == result["valid"]
    # The selected neurons of every layer train.
    (plan,) = prepare(config).plans
    (phase,) = result["phases"]
    changed = changed_channels(config, plan)
    assert phase["frozen_unchanged"]
    assert all(channels.sum() <= plan.channel_counts[layer] < len(channels) for layer, channels in changed.items())
    assert all(channels.any() for channels in changed.values())


def test_fixmatch_saves_averaged_weights(uninterrupted, console):
    config, result = uninterrupted("fixmatch")
    predictor = prepare(config).predictor
    like = {path: np.zeros(x.shape, x.dtype) for path, x in predictor.flat.params.items()}
    with CheckpointManager(Path(config.workdir)) as checkpoints:
        average = checkpoints.load_variables(checkpoints.latest)
        last = checkpoints.restore(checkpoints.latest, {"raw_params": predictor.mesh.put(like)})["raw_params"]
    assert all((np.asarray(last[path]) != average[path]).any() for path in like)
    evaluation = evaluate.evaluate(config, console)
    assert evaluation["parameters_digest"] == result["parameters_digest"]
    assert (evaluation["valid"], evaluation["test"]) == (result["valid"], result["test"])


def test_config_losses_replace_those_of_every_phase(runs, tmp_path):
    losses = (("cross_entropy", 0.5), ("distillation", 0.5))
    teacher = {"strategy.teachers": (f"workdir:{runs}/teacher",), "strategy.losses": losses}
    plans = prepare(from_source(runs, tmp_path / "run", "lp_ft", **teacher)).plans
    assert [plan.phase.name for plan in plans] == ["linear probe", "fine-tune"]
    for plan in plans:
        assert plan.phase.losses == losses
        assert plan.hparams["loss_weights"] == (0.5, 0.5)
        assert {"teachers", "teacher_logits"} <= plan.spec.requires


def test_fixmatch_ignores_labels_of_unlabelled_images(tmp_path, console, monkeypatch):
    settings = FIXMATCH | {"strategy.name": "fixmatch", "train.epochs": 1}
    digests = []
    load_source = registry.load_source

    def load_shuffled(*arguments):
        source = load_source(*arguments)
        labels = source.train.labels.copy()
        last_labelled = max(np.flatnonzero(labels == c)[11] for c in (1, 2, 3))  # of 12 labels per class
        unlabelled = last_labelled + 1 + np.flatnonzero(np.isin(labels[last_labelled + 1 :], (1, 2, 3)))
        labels[unlabelled] = np.random.default_rng(0).permutation(labels[unlabelled])
        assert (labels != source.train.labels).sum() > 50
        return RawDataset(Split(source.train.images, labels), source.test, source.classes)

    for name in ("true", "shuffled"):
        monkeypatch.setattr(registry, "load_source", load_source if name == "true" else load_shuffled)
        digests.append(train(make_config(tmp_path / name, **settings), console)["parameters_digest"])
    assert digests[0] == digests[1]


CUSTOM = """
import jax.numpy as jnp
from tljax.config import Phase
from tljax.losses import loss

@loss("source_maps")
def feature_distance(outputs, batch, references, hparams):
    source = references["source"]["maps"]
    return hparams["feature_distance"] * sum(jnp.abs(outputs["maps"][s] - m).mean() for s, m in source.items())

def top_stage(config, stages, lr):
    rules = (("head/.*", 1.0), (f"{stages[-1]}/.*", 0.5), (".*", 0.0))
    return [Phase("top", rules, losses=(("cross_entropy", 1.0), (__file__ + ":feature_distance", 1.0)))]
"""


def test_custom_strategy_and_loss(run_strategy, tmp_path, console):
    path = tmp_path / "custom.py"
    path.write_text(CUSTOM)
    settings = {"strategy.hparams": {"feature_distance": 0.1}, "train.epochs": 1}
    config, result = run_strategy(f"{path}:top_stage", **settings)
    sha256 = hashlib.sha256(CUSTOM.encode()).hexdigest()
    assert result["files"] == {f"{path}:top_stage": sha256, f"{path}:feature_distance": sha256}
    assert json.loads((tmp_path / "run" / "inputs.json").read_text())["files"] == result["files"]
    assert result["phases"][0]["name"] == "top"
    value = metric_rows(tmp_path / "run")[0]["train"][f"{path}:feature_distance"]
    assert evaluate.evaluate(config, console)["test"] == result["test"]
    path.write_text(CUSTOM.replace("jnp.abs", "jnp.square"))
    os.utime(path, ns=(1, 1))
    with pytest.raises(UserError, match=r"holds another run; it differs in files\.") as error:
        run_strategy(f"{path}:top_stage", **settings)
    assert "\n" not in str(error.value)
    run_strategy(f"{path}:top_stage", "edited", **settings)
    assert metric_rows(tmp_path / "edited")[0]["train"][f"{path}:feature_distance"] != value
