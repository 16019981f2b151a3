"""Exported features and probes: with weights of a file, of a finished run, and random ones."""

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

# Three convolutions, on feature maps of 8x8, 4x4 and 2x2.
VGG = {"blocks": ((4,), (6,), (8,))}
STAGES = ("stem", "stage1", "stage2", "stage3", "pool")


def create_model(seed, options=VGG):
    head = {"pool": "avg", "hidden": ()}
    return models.create_model("vgg11_bn", num_classes=3, options=options, image_size=8, **head, rngs=nnx.Rngs(seed))


@pytest.fixture
def config_dict(tiny, tmp_path):
    """Return a config of feature extraction with a weight file."""
    model = create_model(5)
    layout = layouts(model.family, model.config)["torchvision"]
    write_safetensors(tmp_path / "source.safetensors", export_weights(model, layout))
    tiny.model.options = VGG
    tiny.strategy.name, tiny.strategy.phases = "feature_extraction", ()
    tiny.model.weights, tiny.model.preprocess = str(tmp_path / "source.safetensors"), "unit"
    return tiny


def test_extract_matches_model():
    model = create_model(0)
    flat = params_lib.flatten_model(model)
    images = np.random.default_rng(0).integers(0, 256, (11, 8, 8, 1), np.uint8)
    split = Split(images, np.zeros(11, np.int32))
    mesh = DeviceMesh(4)
    batch_sizes = []
    unit = PRESETS["unit"]

    inputs = make_preprocess(unit, None)(images)
    expected_features, expected_logits = nnx.jit(lambda m, x: (m.features(x), m(x)))(model, inputs)
    feature_fn = make_feature_fn(flat.graphdef, unit, "float32", STAGES, "none")
    features = extract(feature_fn, flat.variables, split, 4, mesh, batch_sizes.append)
    assert batch_sizes == [4, 4, 3]
    assert features.keys() == set(STAGES)
    for stage, x in features.items():
        assert x.dtype == np.float32
        np.testing.assert_allclose(x, expected_features[stage], atol=1e-5)
    pooled = extract(make_feature_fn(flat.graphdef, unit, "float32", STAGES, "avg"), flat.variables, split, 4, mesh)
    logits = pooled["pool"] @ flat.params["head/dense/kernel"] + flat.params["head/dense/bias"]
    np.testing.assert_allclose(logits, expected_logits, atol=1e-5)


def test_feature_fn_skips_later_stages():
    flat = params_lib.flatten_model(create_model(0, {"blocks": ((4,), (32,), (32,))}))
    images = jax.ShapeDtypeStruct((4, 8, 8, 1), np.uint8)

    def flops(*stages):
        feature_fn = make_feature_fn(flat.graphdef, PRESETS["unit"], "float32", stages, "avg")
        return feature_fn.lower(flat.variables, images).compile().cost_analysis()["flops"]

    assert flops("stem") < 0.2 * flops(*STAGES)


def test_write_content(config_dict, tmp_path, console):
    config_dict.features.stages = ("stage2", "stem")
    config = schema.parse(config_dict)
    (train, valid) = features.write(config, console)
    assert sorted((tmp_path / "run").rglob("*.*")) == [train, valid]  # no test split, partial file or config
    experiment = prepare(config)
    with np.load(train) as file:  # without pickle
        assert set(file) == {"stage2", "stem", "label", "image_hash", "classes", "about"}
        assert (file["stage2"].shape, file["stem"].shape) == ((36, 6), (36, 4))
        np.testing.assert_array_equal(file["label"], experiment.data.train.labels)
        assert [bytes.fromhex(p) for p in file["image_hash"]] == experiment.data.train.image_hashes
        assert file["classes"].tolist() == ["1", "2", "3"]
        about = json.loads(str(file["about"]))
    assert about["weights"] == experiment.source.describe()
    backbone = {p: x for p, x in experiment.load_variables().items() if not p.startswith("head/")}
    assert about["backbone_digest"] == params_hash(backbone)
    assert about["split"] == {"name": "train", "fingerprint": experiment.data.train.fingerprint, "size": 36}
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
    assert "36 images, stage2 6, stem 4" in text
    assert "source.safetensors" in text
    assert "Warning" not in text
    assert "test" not in text.replace(str(tmp_path), "")


def test_write_unpooled_unlabelled_and_test(config_dict, console):
    config_dict.features.pool, config_dict.features.splits = "none", ("unlabelled", "test")
    config_dict.data.unlabelled = -1
    config = schema.parse(config_dict)
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
    assert "This file has the labels of the test split" in text


def test_write_random_weights_warns_and_ignores_head(config_dict, console):
    config_dict.features.splits, config_dict.features.stages = ("valid",), ("stage3",)
    written = {}
    for name, seed in (("feature_extraction", 0), ("feature_extraction", 1), ("scratch", 0)):
        config_dict.strategy.name, config_dict.seed = name, seed
        assert ("Warning" in console.export_text()) is False
        (path,) = features.write(schema.parse(config_dict), console)
        with np.load(path) as file:
            written[name, seed] = file["stage3"], json.loads(str(file["about"]))
    assert "Warning: no weights were loaded" in console.export_text()
    (pretrained, about), (other_head, other_about), (random, random_about) = written.values()
    np.testing.assert_array_equal(pretrained, other_head)
    assert about["backbone_digest"] == other_about["backbone_digest"] != random_about["backbone_digest"]
    assert random_about["weights"] is None
    assert np.abs(random - pretrained).max() > 0.01


def write_finished_run(config, seed=3):
    """Write a finished run whose best model is random to the config's workdir; return the model's variables."""
    variables = prepare(schema.override(config, {"seed": seed, "strategy.name": "scratch"})).load_variables()
    experiment = prepare(config)
    folder = WorkDir(config.workdir)
    with WorkDir.create(config, experiment.inputs):
        pass
    with CheckpointManager(folder.path) as checkpoints:
        checkpoints.save(1, {"params": variables}, {}, {"accuracy": 1.0, "loss": 0.0, "epoch": 1.0})
    result = {"data": experiment.data.describe(), "preprocess": schema.to_dict(experiment.predictor.preprocess)}
    folder.write("result.json", result | {"parameters_digest": params_hash(variables)})
    return variables


def test_write_uses_best_model_of_finished_run(config_dict, console, capsys):
    variables = write_finished_run(schema.parse(config_dict))
    config_dict.features.stages = ("stage1",)  # config.features may differ from that of the run
    config = schema.parse(config_dict)
    (path, _) = features.write(config, console)
    experiment = prepare(config)
    predictor = experiment.predictor
    feature_fn = make_feature_fn(predictor.flat.graphdef, predictor.preprocess, "float32", ("stage1",), "avg")
    expected = feature_fn(variables, experiment.data.train.images)
    with np.load(path) as file:
        np.testing.assert_allclose(file["stage1"], expected["stage1"], atol=1e-5)
        about = json.loads(str(file["about"]))
    assert about["weights"] == {"name": f"workdir:{config.workdir}", "sha256": params_hash(variables)}
    assert "the best model of" in console.export_text()
    path.unlink()
    assert cli.main(["run.py", "--mode=features", f"--workdir={config.workdir}"]) == 0
    with np.load(path) as file:
        assert set(STAGES) <= set(file)
    config_dict.optim.lr = 0.5
    with pytest.raises(UserError, match="holds a run of another config"):
        features.write(schema.parse(config_dict), console)


@pytest.mark.parametrize(
    ("field", "names", "message"),
    [
        ("stages", ("stage9",), 'no stage "stage9"; did you mean "stage3"'),
        ("stages", ("stage3",), "stage3 is not built, because model.out_stage is 'stage2'"),
        ("splits", ("vaild",), 'features.splits: there is no "vaild"; did you mean "valid"'),
        ("splits", (), "features.splits is empty; available: train"),
        ("splits", ("unlabelled",), "there are no unlabelled images: set data.unlabelled"),
        ("probes", ("rigde",), 'features.probes: there is no "rigde"; did you mean "ridge"'),
    ],
)
def test_write_checks_names_first(config_dict, tmp_path, console, field, names, message):
    config_dict.features[field] = names
    config_dict.model.out_stage = "stage2" if "out_stage" in message else None
    with pytest.raises(UserError, match=message):
        features.write(schema.parse(config_dict), console)
    assert not (tmp_path / "run").exists()


def test_probe_opens_test_split_once(config_dict, tmp_path, console, monkeypatch):
    from tljax.data import HeldOutSplit

    opened = []
    open_split = HeldOutSplit.open
    monkeypatch.setattr(HeldOutSplit, "open", lambda self: opened.append(self) or open_split(self))
    config_dict.features.stages, config_dict.features.pool = ("stem", "stage3"), "none"
    config = schema.parse(config_dict)
    result = probe.run([config], config.workdir, console)
    assert len(opened) == 1
    assert json.loads((tmp_path / "run" / "probe.json").read_text()) == json.loads(json.dumps(result))
    assert result["features"] == 8 * 8 * 4 + 2 * 2 * 8
    assert list(result["probes"]) == ["logistic", "ridge", "knn"]
    for row in result["probes"].values():
        assert set(row["valid"]) == set(row["test"]) == {*(metric.name for metric in classification.METRICS), "loss"}
        assert row["test"]["accuracy"] > 0.6  # three digits
    best = max(result["probes"].values(), key=lambda row: (row["valid"]["accuracy"], -row["valid"]["loss"]))
    assert result["probes"][result["best"]] is best
    assert result["about"]["data"]["test"]["size"] == prepare(config).data.test.size
    text = console.export_text()
    assert f"{result['best']} *" in text
    assert "± is" not in text


def test_probe_sweep_over_seeds(config_dict, tmp_path, console):
    config_dict.features.probes = ("ridge", "knn")
    config_dict.sweep = {"seed": [0, 1]}
    config = schema.parse(config_dict)
    summary = probe.run(features.expand_seeds(config, "probe"), config.workdir, console)
    trials = [json.loads((tmp_path / "run" / trial / "probe.json").read_text()) for trial in summary["trials"]]
    accuracies = [trial["probes"]["ridge"]["test"]["accuracy"] for trial in trials]
    assert summary["probes"]["ridge"]["test"][0] == pytest.approx(np.mean(accuracies))
    alphas = [trial["probes"]["ridge"]["setting"]["alpha"] for trial in trials]
    assert summary["probes"]["ridge"]["setting"]["alpha"] == alphas
    assert len({trial["about"]["data"]["train"]["fingerprint"] for trial in trials}) == 2
    assert json.loads((tmp_path / "run" / "probe.json").read_text())["best"] == summary["best"]
    assert "95 % Student-t interval over 2 seeds" in console.export_text()
    config_dict.sweep = {"seed": [0], "optim.lr": [0.1, 0.2]}
    with pytest.raises(UserError, match=r"can sweep over seed only, but this config sweeps over seed, optim\.lr"):
        features.expand_seeds(schema.parse(config_dict), "probe")


def test_probe_checks_config_before_recipe_runs(tmp_path, capsys):
    start = "from tljax import config\ndef get_config():\n    c = config.default()\n"
    source, target = tmp_path / "source.py", tmp_path / "target.py"
    source.write_text(f"{start}    c.strategy.name = 'scratch'\n    return c\n")
    target.write_text(f"{start}    c.model.weights = 'recipe:{source}'\n    return c\n")
    arguments = [f"--config={target}", f"--workdir={tmp_path}/runs/target", "--config.features.stages=('stage9',)"]
    assert cli.main(["run.py", "--mode=probe", *arguments]) == 2
    assert 'no stage "stage9"; did you mean "stage3"' in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
