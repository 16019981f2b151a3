"""Segmentation and detection from config to report: outputs, resuming and sweeps."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tests.run import small
from tljax import config as schema
from tljax.errors import UserError
from tljax.features import extract
from tljax.run import evaluate, predict, sweep
from tljax.run.experiment import prepare
from tljax.run.train import train
from tljax.train.batches import BatchStream

SCENES = {"train": 24, "valid": 8, "test": 8, "side": 16, "objects": (1, 2), "palette": "light"}
HEADS = {"unet": {"channels": (8,)}, "detector": {"channels": 8, "neck": "deconv"}}


def config_of(head, workdir):
    """Return a config that trains in seconds on scenes of 16 pixels."""
    c = small.config(workdir)
    c.data.name, c.data.options, c.data.image_size = "scenes", SCENES, 16
    c.data.classes, c.data.labels_per_class = (), None
    c.model.backbone = "vgg11"
    c.model.head, c.model.head_options, c.model.dropout = head, HEADS[head], 0.0
    if head == "unet":
        c.model.out_stage, c.model.aux_weight = "stage2", 0.4  # with deep supervision
    c.strategy.name, c.strategy.phases = "scratch", ()
    c.augment.crop_padding, c.augment.flip, c.augment.scale = 0, True, (0.8, 1.2)
    c.train.epochs, c.train.eval_epochs = 2.0, 1.0
    return c


@pytest.fixture(scope="module", autouse=True)
def small_inference_batches():
    """Evaluate batches of eight images, the size of a split, instead of hundreds that are mostly padding."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extract, "MAX_BATCH_BYTES", 0)  # the minimum is eight images
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return a function from a head to config and result of a finished run, with figures."""

    @functools.cache
    def run(head):
        c = config_of(head, tmp_path_factory.mktemp(head) / "run")
        c.report.figures = True
        config = schema.parse(c)
        return config, train(config, Console(quiet=True))

    return run


@pytest.mark.parametrize("head", list(HEADS))
def test_train_report_evaluate_and_predict(finished, head, console, tmp_path):
    config, result = finished(head)
    workdir = Path(config.workdir)
    assert result["metric"] == {"unet": "miou", "detector": "ap"}[head]
    report = (workdir / "report.md").read_text()
    for figure in {"unet": ("masks", "confusion"), "detector": ("boxes", "precision_recall")}[head]:
        assert f"(figures/{figure}.png)" in report
        assert (workdir / "figures" / f"{figure}.png").is_file()
    again = evaluate.evaluate(config, console)
    assert again["test"] == result["test"]
    # A wide gray image and a red one: predictions have the size of each image.
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(prepare(config).data.valid.images[0]).resize((40, 24)).convert("L").save(folder / "wide.png")
    Image.new("RGB", (16, 16), "red").save(folder / "red.jpg")
    rows = predict.predict(config, folder, console)
    assert [json.loads(line) for line in (workdir / "predictions.jsonl").read_text().splitlines()] == rows
    predictions = workdir / "predictions"
    assert {p.name for p in predictions.glob("*.overlay.png")} == {"wide.overlay.png", "red.overlay.png"}
    if head == "unet":
        with Image.open(rows[1]["mask"]) as mask:
            assert mask.size == (40, 24)
            assert set(np.unique(mask)) <= set(range(11))
        assert sum(rows[1]["shares"].values()) == pytest.approx(1)
    else:
        detections = json.loads((predictions / "results.json").read_text())
        assert len(detections) == sum(len(row["boxes"]) for row in rows)
        for detection in detections:
            x, y, width, height = detection["bbox"]
            assert detection["image_id"] in ("wide.png", "red.jpg")
            assert -1e-3 <= x <= x + width <= 40 + 1e-3
            assert -1e-3 <= y <= y + height <= 24 + 1e-3


@pytest.mark.parametrize("head", list(HEADS))
def test_interrupted_run_resumes_bit_for_bit(finished, head, console, tmp_path, monkeypatch):
    config, expected = finished(head)
    config = schema.override(config, {"workdir": str(tmp_path / "stopped"), "report.figures": False})
    blocks = []
    next_block = BatchStream.next_block

    def next_block_or_interrupt(self, steps):
        blocks.append(steps)
        if len(blocks) == 5:  # in the second epoch of three steps, after the first one's checkpoint
            raise KeyboardInterrupt
        return next_block(self, steps)

    monkeypatch.setattr(BatchStream, "next_block", next_block_or_interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(config, console)
    assert not (tmp_path / "stopped" / "result.json").exists()
    result = train(config, console)
    assert len(blocks) == 5 + 3
    for key in ("parameters_digest", "valid", "test"):
        assert result[key] == expected[key]


def test_sweep_chooses_by_metric_of_task(tmp_path, console):
    c = config_of("unet", tmp_path / "run")
    c.train.epochs = 1
    c.sweep = {"optim.lr": [1e-4, 3e-3], "seed": [0]}
    summary = sweep.run(schema.parse(c), console)
    assert len(summary["rows"]) == 1
    assert sum(trial["test"] is not None for trial in summary["trials"]) == 1


def test_cached_views_transform_masks(tmp_path, console):
    c = config_of("unet", tmp_path / "run")
    c.train.epochs, c.model.aux_weight = 1, 0.0
    c.strategy.name, c.strategy.phases = "custom", (schema.Phase("head", (("head/.*", 1.0), (".*", 0.0))),)
    c.cache.storage, c.cache.num_views = "memory", 2
    result = train(schema.parse(c), console)
    assert "2 views computed once" in result["phases"][0]["features"]


@pytest.mark.parametrize(
    ("head", "changes", "message"),
    [
        ("unet", {"data.name": "digits", "data.options": {}}, "has no labels for the task segmentation"),
        ("unet", {"strategy.losses": (("detection", 1.0),)}, "detection needs boxes, but model.head='unet'"),
        ("detector", {"strategy.losses": (("dice", 1.0),)}, "dice needs masks"),
        ("detector", {"model.aux_weight": 0.5}, "has no auxiliary outputs"),
        ("detector", {"model.pool": "flatten"}, "model.pool is for model.head='classifier'"),
        ("detector", {"model.head_options": {"nek": "fpn"}}, 'detector has no "nek"; did you mean "neck"'),
        ("unet", {"data.classes": (1, 2)}, "every pixel of a mask has some class"),
        ("unet", {"data.labels_per_class": 3}, "set data.num_train"),
        ("unet", {"data.num_train": 25}, "only 24 training images"),
        ("unet", {"optim.class_weights": (1.0, 2.0)}, "has 2 numbers, but there are 11 classes"),
        ("unet", {"augment.scale": (1.2, 0.8)}, "two factors above 0 in ascending order"),
    ],
)
def test_prepare_rejects_config(tmp_path, head, changes, message):
    with pytest.raises(UserError, match=message):
        prepare(schema.override(schema.parse(config_of(head, tmp_path / "run")), changes))
