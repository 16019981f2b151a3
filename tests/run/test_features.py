"""Exported features and the probes on them, with the weights of a file, of chance, and of a finished run."""

import json

import jax
import numpy as np
import pytest
from flax import nnx

from tljax import config as schema
from tljax import models
from tljax.data import Split
from tljax.distributed.mesh import DeviceMesh
from tljax.errors import UserError
from tljax.features.extract import extract, make_feature_fn
from tljax.models import params as params_lib
from tljax.run import cli, features, probe
from tljax.run.experiment import prepare
from tljax.run.workdir import WorkDir, config_hash
from tljax.storage.checkpoints import CheckpointManager
from tljax.tasks import classification
from tljax.weights import PRESETS, export_weights, make_preprocess, params_hash
from tljax.weights.formats import write_safetensors
from tljax.weights.layouts import layouts

# Three convolutions at the sides 8, 4 and 2.
VGG = {"blocks": ((4,), (6,), (8,))}
STAGES = ("stem", "stage1", "stage2", "stage3", "pool")


def build(seed, options=VGG):
    head = {"pool": "avg", "hidden": ()}
    return models.create_model("vgg11_bn", num_classes=3, options=options, image_size=8, **head, rngs=nnx.Rngs(seed))


@pytest.fixture
def ready(tiny, tmp_path):
    """A config with a file of weights, without phases."""
    model = build(5)
    layout = layouts(model.family, model.config)["torchvision"]
    write_safetensors(tmp_path / "source.safetensors", export_weights(model, layout))
    tiny.model.options = VGG
    tiny.strategy.name, tiny.strategy.phases = "feature_extraction", ()
    tiny.model.weights, tiny.model.preprocess = str(tmp_path / "source.safetensors"), "unit"
    return tiny


def test_the_maps_are_the_models_without_padding_and_the_average_feeds_the_classifier():
    model = build(0)
    parts = params_lib.flatten_model(model)
    leaves = parts.params | parts.batch_stats
    images = np.random.default_rng(0).integers(0, 256, (11, 8, 8, 1), np.uint8)
    split, mesh, done = Split(images, np.zeros(11, np.int32)), DeviceMesh(4), []
    unit = PRESETS["unit"]

    prepared = make_preprocess(unit, None)(images)
    theirs, expected = nnx.jit(lambda m, x: (m.features(x), m(x)))(model, prepared)
    maps = extract(
        make_feature_fn(parts.graphdef, unit, "float32", STAGES, "none"), leaves, split, 4, mesh, done.append
    )
    assert done == [4, 4, 3]
    assert maps.keys() == set(STAGES)
    for stage, x in maps.items():
        assert x.dtype == np.float32
        np.testing.assert_allclose(x, theirs[stage], atol=1e-5)
    pooled = extract(make_feature_fn(parts.graphdef, unit, "float32", STAGES, "avg"), leaves, split, 4, mesh)
    logits = pooled["pool"] @ leaves["head/dense/kernel"] + leaves["head/dense/bias"]
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_stages_behind_the_last_one_wanted_are_not_computed():
    parts = params_lib.flatten_model(build(0, {"blocks": ((4,), (32,), (32,))}))
    leaves, images = parts.params | parts.batch_stats, jax.ShapeDtypeStruct((4, 8, 8, 1), np.uint8)

    def flops(*stages):
        lowered = make_feature_fn(parts.graphdef, PRESETS["unit"], "float32", stages, "avg").lower(leaves, images)
        return lowered.compile().cost_analysis()["flops"]

    assert flops("stem") < 0.2 * flops(*STAGES)


def test_a_file_has_what_it_promises(ready, tmp_path, console):
    ready.features.stages = ("stage2", "stem")
    config = schema.parse(ready)
    (train, valid) = features.write(config, console)
    assert sorted((tmp_path / "run").rglob("*.*")) == [train, valid]  # no test split, nothing half written, no config
    prepared = prepare(config)
    with np.load(train) as file:  # without pickle
        assert set(file) == {"stage2", "stem", "label", "picture", "classes", "about"}
        assert (file["stage2"].shape, file["stem"].shape) == ((36, 6), (36, 4))
        np.testing.assert_array_equal(file["label"], prepared.data.train.labels)
        assert [bytes.fromhex(p) for p in file["picture"]] == prepared.data.train.image_hashes
        assert file["classes"].tolist() == ["1", "2", "3"]
        about = json.loads(str(file["about"]))
    leaves = prepared.load_variables()
    assert about["weights"] == prepared.source.describe()
    trunk = {p: x for p, x in leaves.items() if not p.startswith("head/")}
    assert about["backbone_digest"] == params_hash(trunk)
    assert about["split"] == {"name": "train", "fingerprint": prepared.data.train.fingerprint, "size": 36}
    assert about["preprocess"]["scale"] == 1 / 255
    for key, value in {
        "backbone": "vgg11_bn",
        "pool": "avg",
        "precision": "float32",
        "stages": ["stage2", "stem"],
    }.items():
        assert about[key] == value
    assert about["config_digest"] == config_hash(config)
    text = console.export_text()
    assert "36 pictures, stage2 6, stem 4" in text
    assert "source.safetensors" in text
    assert "Warning" not in text
    assert "test" not in text.replace(str(tmp_path), "")


def test_all_stages_whole_of_pictures_without_labels_and_of_test(ready, console):
    ready.features.pool, ready.features.splits = "none", ("unlabelled", "test")
    ready.data.unlabelled = -1
    config = schema.parse(ready)
    unlabelled, test = features.write(config, console)
    data = prepare(config).data
    with np.load(unlabelled) as file:
        assert "label" not in file
        assert file["stage3"].shape == (len(data.unlabelled.images), 2, 2, 8)
        assert [n for n in file if n in STAGES] == list(STAGES)
        assert json.loads(str(file["about"]))["split"]["fingerprint"] == data.unlabelled.fingerprint
    with np.load(test) as file:
        np.testing.assert_array_equal(file["label"], data.test.open().labels)
    text = console.export_text()
    assert "unlabelled: " in text
    assert "iB will be written" in text
    assert "labels of the test split now lie in a file" in text


def test_features_do_not_depend_on_the_head_and_random_ones_come_with_a_warning(ready, console):
    ready.features.splits, ready.features.stages = ("valid",), ("stage3",)
    kept = {}
    for name, seed in (("feature_extraction", 0), ("feature_extraction", 1), ("scratch", 0)):
        ready.strategy.name, ready.seed = name, seed
        assert ("Warning" in console.export_text()) is False
        (path,) = features.write(schema.parse(ready), console)
        with np.load(path) as file:
            kept[name, seed] = file["stage3"], json.loads(str(file["about"]))
    assert "Warning: no weights were loaded" in console.export_text()
    (first, about), (second, again), (random, none) = kept.values()
    np.testing.assert_array_equal(first, second)
    assert about["backbone_digest"] == again["backbone_digest"] != none["backbone_digest"]
    assert none["weights"] is None
    assert np.abs(random - first).max() > 0.01


def finish(config, seed=3):
    """Makes the config's workdir a finished run whose best model is random, and returns that model's leaves."""
    other = prepare(schema.override(config, {"seed": seed, "strategy.name": "scratch"}))
    leaves, prepared, folder = other.load_variables(), prepare(config), WorkDir(config.workdir)
    with WorkDir.create(config, prepared.inputs):
        pass
    with CheckpointManager(folder.path) as checkpoints:
        checkpoints.save(1, {"params": leaves}, {}, {"accuracy": 1.0, "loss": 0.0, "epoch": 1.0})
    result = {"data": prepared.data.describe(), "preprocess": schema.to_dict(prepared.predictor.preprocess)}
    folder.write("result.json", result | {"parameters_digest": params_hash(leaves)})
    return leaves


def test_a_finished_run_gives_its_best_model_and_another_config_is_refused(ready, console, capsys):
    leaves = finish(schema.parse(ready))
    ready.features.stages = ("stage1",)  # what is taken from a run is no part of it
    config = schema.parse(ready)
    (path, _) = features.write(config, console)
    prepared = prepare(config)
    network, images = prepared.predictor, prepared.data.train.images
    make = make_feature_fn(
        params_lib.flatten_model(network.model).graphdef, network.preprocess, "float32", ("stage1",), "avg"
    )
    with np.load(path) as file:
        np.testing.assert_allclose(file["stage1"], make(leaves, images)["stage1"], atol=1e-5)
        about = json.loads(str(file["about"]))
    assert about["weights"] == {"name": f"workdir:{config.workdir}", "sha256": params_hash(leaves)}
    assert "the best model of" in console.export_text()
    path.unlink()
    assert cli.main(["run.py", "--mode=features", f"--workdir={config.workdir}"]) == 0
    with np.load(path) as file:
        assert set(STAGES) <= set(file)
    ready.optim.lr = 0.5
    with pytest.raises(UserError, match="holds a run of another config"):
        features.write(schema.parse(ready), console)


@pytest.mark.parametrize(
    ("field", "names", "words"),
    [
        ("stages", ("stage9",), 'no stage "stage9"; did you mean "stage3"'),
        ("stages", ("stage3",), "stage3 is not built, because model.out_stage is 'stage2'"),
        ("splits", ("vaild",), 'features.splits: there is no "vaild"; did you mean "valid"'),
        ("splits", (), "features.splits is empty; available: train"),
        ("splits", ("unlabelled",), "data.unlabelled keeps no pictures"),
        ("probes", ("rigde",), 'features.probes: there is no "rigde"; did you mean "ridge"'),
    ],
)
def test_a_wrong_name_is_one_sentence_and_nothing_is_written(ready, tmp_path, console, field, names, words):
    ready.features[field] = names
    ready.model.out_stage = "stage2" if "out_stage" in words else None
    with pytest.raises(UserError, match=words):
        features.write(schema.parse(ready), console)
    assert not (tmp_path / "run").exists()


def test_probes_are_judged_once_on_the_features_that_are_exported(ready, tmp_path, console, monkeypatch):
    from tljax.data import HeldOutSplit

    opened, open_ = [], HeldOutSplit.open
    monkeypatch.setattr(HeldOutSplit, "open", lambda self: opened.append(self) or open_(self))
    ready.features.stages, ready.features.pool = ("stem", "stage3"), "none"
    config = schema.parse(ready)
    result = probe.run([config], config.workdir, console)
    assert len(opened) == 1
    assert json.loads((tmp_path / "run" / "probe.json").read_text()) == json.loads(json.dumps(result))
    assert result["features"] == 8 * 8 * 4 + 2 * 2 * 8
    assert list(result["probes"]) == ["logistic", "ridge", "knn"]
    for one in result["probes"].values():
        assert set(one["valid"]) == set(one["test"]) == set({*dict(classification.METRICS), "loss"})
        assert one["test"]["accuracy"] > 0.6  # three digits
    best = max(result["probes"].values(), key=lambda one: (one["valid"]["accuracy"], -one["valid"]["loss"]))
    assert result["probes"][result["best"]] is best
    assert result["about"]["data"]["test"]["size"] == prepare(config).data.test.size
    text = console.export_text()
    assert f"{result['best']} *" in text
    assert "± is" not in text


def test_a_sweep_over_seeds_gives_intervals_and_another_sweep_is_refused(ready, tmp_path, console, monkeypatch):
    ready.features.probes = ("ridge", "knn")
    ready.sweep = {"seed": [0, 1]}
    config = schema.parse(ready)
    summary = probe.run(features.runs(config, "probe"), config.workdir, console)
    cells = [json.loads((tmp_path / "run" / cell / "probe.json").read_text()) for cell in summary["cells"]]
    accuracies = [cell["probes"]["ridge"]["test"]["accuracy"] for cell in cells]
    assert summary["probes"]["ridge"]["test"][0] == pytest.approx(np.mean(accuracies))
    assert summary["probes"]["ridge"]["setting"]["alpha"] == [c["probes"]["ridge"]["setting"]["alpha"] for c in cells]
    assert len({cell["about"]["data"]["train"]["fingerprint"] for cell in cells}) == 2
    assert json.loads((tmp_path / "run" / "probe.json").read_text())["best"] == summary["best"]
    assert "95 % Student-t interval over 2 seeds" in console.export_text()
    ready.sweep = {"seed": [0], "optim.lr": [0.1, 0.2]}
    with pytest.raises(UserError, match=r"sweeps over seed alone, and this config over seed, optim\.lr"):
        features.runs(schema.parse(ready), "probe")


def test_what_is_wrong_behind_a_recipe_is_said_before_it_runs(tmp_path, capsys):
    start = "from tljax import config\ndef get_config():\n    c = config.default()\n"
    source, target = tmp_path / "source.py", tmp_path / "target.py"
    source.write_text(f"{start}    c.strategy.name = 'scratch'\n    return c\n")
    target.write_text(f"{start}    c.model.weights = 'recipe:{source}'\n    return c\n")
    wrong = [f"--config={target}", f"--workdir={tmp_path}/runs/target", "--config.features.stages=('stage9',)"]
    assert cli.main(["run.py", "--mode=probe", *wrong]) == 2
    assert 'no stage "stage9"; did you mean "stage3"' in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
