"""Whole runs and sweeps: what they write, when they stop, and what uses a finished run."""

import dataclasses
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from tests.run import small
from tljax import config as schema
from tljax import weights
from tljax.data import HeldOutSplit
from tljax.errors import TrainingStopped, UserError
from tljax.report import markdown
from tljax.run import cli, evaluate, features, predict, sweep
from tljax.run.experiment import prepare
from tljax.run.train import train
from tljax.run.workdir import WorkDir
from tljax.storage.checkpoints import CheckpointManager
from tljax.tasks import classification
from tljax.train.loop import Trainer

METRICS = ("accuracy", "top5", "precision_macro", "recall_macro", "f1_macro", "roc_auc", "ece")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return result, work directory, config and console output of a finished run; tests must not change it."""
    c = small.config(tmp_path_factory.mktemp("finished") / "run")
    # A learning rate so high that the last validation is not the best one.
    head, top = c.strategy.phases
    c.strategy.phases = head, dataclasses.replace(top, optim={"name": "nesterov", "lr": 0.1})
    c.report.figures = c.report.tensorboard = True
    config, console = schema.parse(c), Console(record=True, file=io.StringIO(), width=200)
    return train(config, console), Path(config.workdir), config, console.export_text()


@pytest.fixture(scope="module")
def fine_tuned(finished, tmp_path_factory):
    """Return result and config of a run that was fine-tuned from `finished` on other classes; its source is deleted."""
    folder = tmp_path_factory.mktemp("fine_tuned")
    shutil.copytree(finished[1], folder / "source")
    c = small.config(folder / "run")
    c.model.weights = f"workdir:{folder / 'source'}"
    c.data.classes = (4, 5)
    c.strategy.name, c.strategy.phases = "feature_extraction", ()
    c.train.epochs = 1
    config = schema.parse(c)
    result = train(config, Console(quiet=True))
    shutil.rmtree(folder / "source")
    return result, config


def test_train_writes_result_metrics_and_report(finished):
    result, workdir, _, text = finished
    assert json.loads((workdir / "result.json").read_text()) == json.loads(json.dumps(result))
    for split in ("valid", "test"):
        assert all(0 <= result[split][m] <= 1 for m in METRICS)
        assert len(result[split]["per_class"]) == 3
    assert result["gap"]["accuracy"] == pytest.approx(result["valid"]["accuracy"] - result["test"]["accuracy"])
    assert [p["name"] for p in result["phases"]] == ["head", "top"]
    for phase in result["phases"]:
        assert set(phase) >= {"name", "epochs", "seconds", "trainable_parameters", "optimizer_bytes"}
        assert phase["frozen_unchanged"]
    assert result["phases"][0]["trainable_parameters"] == 8 * 3 + 3
    # Adam has two moments per parameter, Nesterov momentum one.
    assert result["phases"][0]["optimizer_bytes"] == 2 * 4 * result["phases"][0]["trainable_parameters"]
    assert result["phases"][1]["optimizer_bytes"] == 4 * result["phases"][1]["trainable_parameters"]
    for key in ("seed", "versions", "weights", "data", "seconds", "peak_memory_bytes", "config_digest"):
        assert key in result
    assert result["data"]["train"]["size"] == 36
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in rows] == pytest.approx([1, 2, 3, 4], abs=0.2)
    best = max(rows, key=lambda r: (r["valid"]["accuracy"], -r["valid"]["loss"]))
    assert result["best"]["step"] == best["step"]
    assert result["valid"]["accuracy"] == best["valid"]["accuracy"]
    for name in ("curves", "confusion", "roc", "most_wrong"):
        assert (workdir / "figures" / f"{name}.png").stat().st_size > 3000
        assert f"figures/{name}.png" in (workdir / "report.md").read_text()
    assert list((workdir / "tensorboard").glob("events.*"))
    assert "validation" in text


def test_report_is_redrawn_from_workdir_alone(finished, tmp_path, capsys):
    _, workdir, _, _ = finished
    copy = tmp_path / "elsewhere"
    shutil.copytree(workdir, copy)
    text, figures = (copy / "report.md").read_text(), sorted(p.name for p in (copy / "figures").iterdir())
    (copy / "report.md").unlink()
    shutil.rmtree(copy / "figures")
    shutil.rmtree(copy / "checkpoints")
    assert cli.main(["run.py", "--mode=report", f"--workdir={copy}"]) == 0
    assert "report.md" in capsys.readouterr().out
    assert (copy / "report.md").read_text() == text
    assert sorted(p.name for p in (copy / "figures").iterdir()) == figures
    # A run of an older version has neither figure_data.npz nor phase_rows.
    (copy / "figure_data.npz").unlink()
    result = json.loads((copy / "result.json").read_text())
    del result["phase_rows"]
    (copy / "result.json").write_text(json.dumps(result))
    shutil.rmtree(copy / "figures")
    markdown.write_report(copy)
    assert [p.name for p in (copy / "figures").iterdir()] == ["curves.png"]


def test_best_checkpoint_is_the_evaluated_model(finished):
    result, workdir, *_ = finished
    with CheckpointManager(workdir) as checkpoints:
        assert checkpoints.best == result["best"]["step"] < checkpoints.latest
        assert checkpoints.latest == sum(p["steps"] for p in result["phases"])
        variables = checkpoints.load_variables(checkpoints.best)
    assert weights.params_hash(variables) == result["parameters_digest"]


def test_evaluate_reproduces_recorded_metrics(finished, console):
    result, _, config, _ = finished
    again = evaluate.evaluate(config, console)
    assert again["test"] == result["test"]
    text = console.export_text()
    assert "The parameters are the recorded ones" in text
    assert "recorded metrics is 0." in text


def test_predict_image_and_folder(finished, console, tmp_path):
    from PIL import Image

    _, workdir, config, _ = finished
    folder = tmp_path / "images"
    folder.mkdir()
    valid = prepare(config).data.valid
    for i in range(6):
        Image.fromarray(valid.images[i, ..., 0]).save(folder / f"{i}.png")
    (folder / "notes.txt").write_text("not an image")
    rows = predict.predict(config, folder, console)
    assert [json.loads(line) for line in (workdir / "predictions.jsonl").read_text().splitlines()] == rows
    assert len(rows) == 6
    for row in rows:
        assert sum(c["probability"] for c in row["top"]) == pytest.approx(1)
        assert row["top"] == sorted(row["top"], key=lambda c: -c["probability"])
    predictor, variables, _ = evaluate.load_finished(config)
    _, predictions = predictor.evaluate(variables, valid)
    probabilities = classification.probabilities(predictions)
    assert [row["top"][0]["class"] for row in rows] == [str(1 + p) for p in probabilities[:6].argmax(1)]
    # A color image of another size is converted to the size and channels of the data.
    Image.fromarray(np.zeros((30, 20, 3), np.uint8)).save(tmp_path / "black.jpg")
    assert len(predict.predict(config, tmp_path / "black.jpg", console)) == 1
    for path, message in (
        (folder / "notes.txt", "cannot be read as an image"),
        (tmp_path / "no", "no image or folder"),
    ):
        with pytest.raises(UserError, match=message):
            predict.predict(config, path, console)


def test_predict_reads_no_data_or_source_weights(fine_tuned, console, tmp_path, monkeypatch):
    from PIL import Image

    _, config = fine_tuned
    assert not Path(config.model.weights.removeprefix("workdir:")).exists()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "black.png")
    monkeypatch.setattr("tljax.data.load", lambda *_: pytest.fail("the data were read"))
    (row,) = predict.predict(config, tmp_path / "black.png", console)
    assert {c["class"] for c in row["top"]} == {"4", "5"}


def test_finished_run_is_source_of_weights(finished, fine_tuned):
    source_result, workdir, *_ = finished
    result, config = fine_tuned
    assert result["weights"] == {"name": config.model.weights, "sha256": source_result["parameters_digest"]}
    with CheckpointManager(workdir) as a, CheckpointManager(Path(config.workdir)) as b:
        source, target = a.load_variables(a.best), b.load_variables(b.best)
    for path in source:
        if not path.startswith("head/"):
            np.testing.assert_array_equal(source[path], target[path])
    assert target["head/dense/bias"].shape == (2,)


def test_train_opens_test_split_once_and_last(tiny, console, monkeypatch):
    calls = []
    open_split = HeldOutSplit.open
    compute_metrics = classification.compute_metrics
    monkeypatch.setattr(HeldOutSplit, "open", lambda self: calls.append("open") or open_split(self))
    monkeypatch.setattr(classification, "compute_metrics", lambda *a: calls.append("metrics") or compute_metrics(*a))
    train(schema.parse(tiny), console)
    # Four validations, the best model on validation once more, and only then the test split.
    assert calls == ["metrics"] * 5 + ["open", "metrics"]


def test_train_stops_at_loss_that_is_not_finite(tiny, console, tmp_path):
    tiny.optim.name = "sgd"
    tiny.optim.lr = 1e-2
    tiny.strategy.phases = (
        schema.Phase("good", ((".*", 1.0),), epochs=2.0),
        schema.Phase("bad", ((".*", 1.0),), optim={"lr": 1e30}),
    )
    with pytest.raises(TrainingStopped, match=r"not finite at step 1\d .*last good checkpoint is step 9"):
        train(schema.parse(tiny), console)
    with CheckpointManager(tmp_path / "run") as checkpoints:
        assert checkpoints.latest == 9
        assert all(np.isfinite(v).all() for v in checkpoints.load_variables(9).values())


def test_early_stopping_ends_only_its_phase(tiny, console):
    tiny.train.epochs = 20
    tiny.train.patience_epochs = 2
    # A learning rate too small to change anything: the first validation stays the best.
    tiny.strategy.phases = (
        schema.Phase("idle", ((".*/kernel", 1.0), (".*", 0.0)), epochs=10, optim={"name": "sgd", "lr": 1e-12}),
        schema.Phase("real", ((".*/kernel", 1.0), (".*", 0.0)), optim={"name": "sgd", "lr": 0.05}),
    )
    result = train(schema.parse(tiny), console)
    idle, real = result["phases"]
    assert idle["epochs"] == pytest.approx(3, abs=0.3)
    assert real["epochs"] > 2
    assert result["best"]["phase"] == "real"


def test_sweep_tunes_on_validation(tiny, console, tmp_path):
    tiny.strategy.phases = tiny.strategy.phases[:1]
    tiny.train.epochs = 2
    tiny.sweep = {"optim.lr": [1e-6, 0.03], "seed": [0, 1]}
    summary = sweep.run(schema.parse(tiny), console)
    (row,) = summary["rows"]
    valid = {(*trial["settings"].values(),): trial["valid"] for trial in summary["trials"]}
    means = {lr: np.mean([valid[lr, seed] for seed in (0, 1)]) for lr in (1e-6, 0.03)}
    chosen = row["settings"]["optim.lr"]
    assert (means[chosen], row["seeds"]) == (max(means.values()), 2)
    tested = {(*trial["settings"].values(),) for trial in summary["trials"] if trial["test"] is not None}
    assert tested == {(chosen, 0), (chosen, 1)}
    assert "lr" in (tmp_path / "run" / "report.md").read_text()


def test_sweep_chooses_by_mean_over_seeds(tiny, console, tmp_path, monkeypatch):
    """Within each compared setting, and not by the test score; only the chosen runs open the test split."""
    valid = {
        **{(0.1, 8, 0): 0.9, (0.1, 8, 1): 0.1, (0.2, 8, 0): 0.6, (0.2, 8, 1): 0.7},
        **{(0.1, 16, 0): 0.5, (0.1, 16, 1): 0.8, (0.2, 16, 0): 0.6, (0.2, 16, 1): 0.6},
    }
    opened = []

    def train_fake(runs, console, *, open_test, lines):
        results = []
        for run in runs:
            settings = run.config.optim.lr, run.config.data.labels_per_class, run.config.seed
            opened.extend([settings] if open_test else [])
            test = {"test": {"accuracy": 1 - valid[settings]}} if open_test else {}
            result = {"metric": "accuracy", "phases": [], "seconds": 0.0, "valid": {"accuracy": valid[settings]}}
            results.append(result | test)
        return results

    monkeypatch.setattr(sweep, "train_replicas", train_fake)
    tiny.sweep = {"optim.lr": [0.1, 0.2], "data.labels_per_class": [8, 16], "seed": [0, 1]}
    summary = sweep.run(schema.parse(tiny), console)
    chosen = {8: 0.2, 16: 0.1}
    assert {r["settings"]["data.labels_per_class"]: r["settings"]["optim.lr"] for r in summary["rows"]} == chosen
    assert all(r["seeds"] == 2 for r in summary["rows"])
    assert sorted(opened) == sorted((lr, labels, seed) for labels, lr in chosen.items() for seed in (0, 1))
    assert {(*trial["settings"].values(),): trial["valid"] for trial in summary["trials"]} == valid


def test_sweep_of_older_version_is_read_and_resumed(tiny, console, tmp_path, monkeypatch, capsys):
    tiny.strategy.phases = tiny.strategy.phases[:1]
    tiny.train.epochs = 1
    tiny.sweep = {"seed": [0, 1]}
    config = schema.parse(tiny)
    summary = sweep.run(config, console)
    root = tmp_path / "run"

    # Older versions have the key "cells" and the folder cells/.
    old = dict(summary)
    old["cells"] = [t | {"workdir": t["workdir"].replace("trials/", "cells/")} for t in old.pop("trials")]
    (root / "result.json").write_text(json.dumps(old))
    (root / "trials").rename(root / "cells")
    trials = WorkDir(root).read_result()["trials"]
    assert [trial["workdir"] for trial in trials] == ["cells/seed=0", "cells/seed=1"]
    assert cli.main(["run.py", "--mode=evaluate", f"--workdir={root}"]) == 2
    assert f"such as --workdir={root}/cells/seed=0" in capsys.readouterr().err

    monkeypatch.setattr(Trainer, "fit", lambda self: pytest.fail("a finished trial was trained again"))
    assert sweep.run(config, console)["trials"] == summary["trials"]
    assert not (root / "cells").exists()
    assert (root / "trials" / "seed=1" / "result.json").is_file()
    assert "cells" not in json.loads((root / "result.json").read_text())
    # Renamed, but not finished yet: the paths are those of the new folder.
    (root / "result.json").write_text(json.dumps(old))
    assert WorkDir(root).read_result()["trials"] == json.loads(json.dumps(summary["trials"]))


def test_features_of_older_sweep_use_its_trials(tiny, tmp_path):
    tiny.sweep = {"seed": [0]}
    (tmp_path / "run" / "cells" / "seed=0").mkdir(parents=True)
    (config,) = features.expand_seeds(schema.parse(tiny), "features")
    assert Path(config.workdir).is_dir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: setattr(c.model, "backbone", "resnet9"), 'no model.backbone "resnet9"; did you mean "resnet8"'),
        (lambda c: setattr(c.model, "out_stage", "stage9"), 'no stage "stage9"'),
        (lambda c: setattr(c.data, "labels_per_class", 9999), "has only"),
        (lambda c: setattr(c.model, "num_classes", 3), "model.num_classes"),
        (lambda c: setattr(c.strategy, "phases", (schema.Phase("p", (("x", 1.0), (".*", 0.0))),)), "matches nothing"),
        (lambda c: setattr(c.model, "weights", "/nowhere.safetensors"), "no weights at /nowhere.safetensors"),
    ],
)
def test_train_checks_config_before_writing(tiny, tmp_path, console, change, message):
    if "num_classes" in message:
        tiny.data.classes = ()
    change(tiny)
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        train(schema.parse(tiny), console)
    assert not (tmp_path / "run").exists()


def test_train_checks_weights_before_writing(tiny, tmp_path, console):
    # One tensor that fits, and one that only VGGs with BatchNorm have: few networks to compare the file with.
    tensors = {"features.0.weight": np.zeros((4, 3, 3, 3), np.float32), "features.1.running_var": np.ones(5)}
    save_file(tensors, tmp_path / "half.safetensors")
    tiny.model.weights = str(tmp_path / "half.safetensors")
    with pytest.raises(UserError, match=r"The preprocessing of .* is unknown: set model\.preprocess"):
        train(schema.parse(tiny), console)
    tiny.model.preprocess = "torch"
    with pytest.raises(UserError, match=r"does not fit.*Missing variables: stage2/conv1/bn/bias"):
        train(schema.parse(tiny), console)
    assert not (tmp_path / "run").exists()
