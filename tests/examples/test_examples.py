"""Every file of examples/ trains, writes its report, and is evaluated again with the same metrics."""

import json
from pathlib import Path

import pytest

from tljax.config import override
from tljax.run.config_files import load_config_file
from tljax.run.evaluate import evaluate
from tljax.run.train import train

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SMALL = {
    "train.epochs": 1,
    "train.batch_size": 8,
    "report.tensorboard": False,
    "data.labels_per_class": 4,
    "model.backbone": "vgg11_bn",
    "model.options": {"blocks": ((4,), (8,))},
}
# Settings of single examples; None leaves out one of `SMALL`.
CHANGES = {
    "backbone": {"model.backbone": None, "model.options": {"width": 8, "depths": (1, 1)}},
    "data_source": {"data.options": {"train": 40, "test": 12, "side": 12}},
    "multilabel": {
        "data.labels_per_class": None,
        "data.options": {"train": 32, "valid": 16, "test": 16, "side": 16, "objects": (1, 3)},
    },
}
METRICS = {"metric": ["accuracy", "kappa", "top2", "brier"], "multilabel": ["map"]}
TITLES = {
    "metric": ["accuracy", "kappa", "top-2 accuracy", "Brier score (lower is better)"],
    "multilabel": ["mean average precision"],
}


def test_examples_have_a_config_each():
    assert [path.stem for path in EXAMPLES] == [
        *("augmentation", "backbone", "data_source", "metric", "multilabel", "optimizer")
    ]


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_example(path, tmp_path, monkeypatch, console):
    monkeypatch.chdir(ROOT)
    settings = {name: value for name, value in (SMALL | CHANGES.get(path.stem, {})).items() if value is not None}
    config = load_config_file(str(path.relative_to(ROOT)))
    config = override(config, {**settings, "workdir": str(tmp_path / "run")})
    result = train(config, console)
    metrics = METRICS.get(path.stem, ["accuracy"])
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert {"loss", *metrics} <= set(result["valid"]) & set(row["valid"])
    assert any(name.partition(":")[0].endswith(path.name) for name in result["files"])
    assert json.loads((tmp_path / "run" / "inputs.json").read_text())["files"] == result["files"]
    report = (tmp_path / "run" / "report.md").read_text()
    assert all(f"| {title} |" in report for title in TITLES.get(path.stem, ["accuracy"]))

    again = evaluate(config, console)
    assert again["parameters_digest"] == result["parameters_digest"]
    for split in ("valid", "test"):
        assert again[split].keys() == result[split].keys()
        for name in ("loss", *metrics):
            assert again[split][name] == pytest.approx(result[split][name], abs=1e-6)
