"""Runs on image files, from training to predictions, which go on after a kill."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tests.conftest import ROOT
from tests.run import small
from tljax import config as schema
from tljax.data.sources.images import ImageFormat
from tljax.errors import UserError
from tljax.features import extract
from tljax.inference.predictor import Predictor
from tljax.run import evaluate, predict
from tljax.run.config_files import load_config_file
from tljax.run.experiment import prepare
from tljax.run.train import train


def write_images(root, count=12, sizes=((14, 20), (20, 14), (16, 16))):
    """Write images of three classes that differ in brightness, of several sizes, in color."""
    rng = np.random.default_rng(0)
    for name, level in (("bright", 220), ("dark", 30), ("middle", 125)):
        for i in range(count):
            noise = rng.integers(-25, 26, (*sizes[i % len(sizes)], 3))
            path = root / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((level + noise).astype(np.uint8)).save(path)
    return root


@pytest.fixture(scope="module", autouse=True)
def small_inference_batches():
    """Predict eight images at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extract, "MAX_BATCH_BYTES", 0)
        yield


def config_of(workdir, images):
    c = small.config(workdir)
    c.data.name, c.data.path, c.data.image_size = "folder", str(images), 8
    c.data.classes, c.data.labels_per_class = (), None
    c.data.store_size = 12
    c.data.on_error = "skip"
    c.model.dropout = 0.0
    c.strategy.name, c.strategy.phases = "scratch", ()
    c.augment.crop_padding, c.augment.crop_scale, c.augment.flip = 0, (0.5, 1.0), True
    c.optim.lr, c.train.epochs = 0.02, 12.0
    return c


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Config and result of a finished run on a folder with one broken file, and the folder."""
    root = tmp_path_factory.mktemp("run")
    images = write_images(root / "images")
    (images / "dark" / "broken.png").write_bytes(b"x")
    config = schema.parse(config_of(root / "run", images))
    console = Console(record=True, width=200)
    return config, train(config, console), images, console.export_text()


@pytest.fixture
def new_run(finished, tmp_path):
    """Config of a copy of the finished run, without predictions."""
    config, *_ = finished
    shutil.copytree(config.workdir, tmp_path / "run", ignore=shutil.ignore_patterns("predictions*"))
    return schema.override(config, {"workdir": str(tmp_path / "run")})


def read_rows(config):
    return [json.loads(line) for line in (Path(config.workdir) / "predictions.jsonl").read_text().splitlines()]


def test_run_on_folder_reports_its_files(finished, console):
    config, result, _, log = finished
    assert result["data"]["skipped"] == ["dark/broken.png"]
    assert result["data"]["resize"] == "crop"
    assert result["data"]["image_shape"] == [12, 12, 3]
    assert result["preprocess"]["center_crop"] is True
    assert result["test"]["accuracy"] == 1.0
    assert (
        "1 file could not be used and was skipped: dark/broken.png" in (Path(config.workdir) / "report.md").read_text()
    )
    assert "1 file was skipped: dark/broken.png" in log
    again = evaluate.evaluate(config, console)
    assert again["test"] == result["test"]


def test_run_from_disk_equals_run_from_memory(finished, tmp_path, monkeypatch):
    config, result, *_ = finished
    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path / "cache"))
    on_disk = {"workdir": str(tmp_path / "run"), "data.max_memory_gb": 1e-9}
    again = train(schema.override(config, on_disk), Console(quiet=True))
    assert (tmp_path / "cache" / "images").is_dir()
    for key in ("parameters_digest", "valid", "test", "data", "config_digest"):
        assert again[key] == result[key]


def test_predictions_are_written_as_rows_and_table(finished, new_run, console):
    *_, images, _ = finished
    rows = predict.predict(new_run, images, console)
    assert rows == read_rows(new_run)
    assert [row["image"] for row in rows] == sorted(str(p) for p in images.rglob("[0-9]*.png"))
    assert all(Path(row["image"]).parent.name == row["top"][0]["class"] for row in rows)
    with (Path(new_run.workdir) / "predictions.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["file", "class", "probability", "bright", "dark", "middle"]
    for row, line in zip(rows, table, strict=True):
        assert line["file"] == row["image"]
        assert line["class"] == row["top"][0]["class"]
        probabilities = [float(line[name]) for name in ("bright", "dark", "middle")]
        assert sum(probabilities) == pytest.approx(1)
        assert max(probabilities) == float(line["probability"])
        assert row["probabilities"] == dict(zip(("bright", "dark", "middle"), probabilities, strict=True))
    assert "Warning: 1 files were skipped:" in console.export_text()
    assert not list(Path(new_run.workdir).glob("*.part"))


def test_predictions_equal_those_of_the_splits(finished, new_run, console):
    _, _, images, _ = finished
    rows = {row["image"]: row for row in predict.predict(new_run, images, console)}
    experiment = prepare(new_run)
    predictor, variables, _ = evaluate.load_finished(new_run)
    valid = experiment.data.valid
    scores = predictor.predict(variables, {"image": valid.images})["probabilities"]
    stored = {ImageFormat(12).read(Path(name)).tobytes(): row for name, row in rows.items()}
    for image, expected in zip(valid.images, scores, strict=True):
        np.testing.assert_allclose(list(stored[image.tobytes()]["probabilities"].values()), expected, atol=1e-5)


def test_killed_prediction_continues(finished, new_run, console, monkeypatch):
    *_, images, _ = finished
    expected = predict.predict(new_run, images, console)
    workdir = Path(new_run.workdir)
    (workdir / "predictions.jsonl").unlink()
    forward, calls = Predictor.predict, []

    def predict_or_interrupt(self, variables, arrays):
        calls.append(len(arrays["image"]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return forward(self, variables, arrays)

    monkeypatch.setattr(Predictor, "predict", predict_or_interrupt)
    with pytest.raises(KeyboardInterrupt):
        predict.predict(new_run, images, console)
    part = workdir / "predictions.jsonl.part"
    assert len(part.read_text().splitlines()) == 1 + 16
    assert not (workdir / "predictions.jsonl").exists()
    with part.open("a") as file:
        file.write('{"file": ["unfini')  # the process was killed while it wrote
    calls[:] = [0] * 3
    assert predict.predict(new_run, images, console) == expected
    assert calls[3:] == [8, 8, 4]
    assert "16 of 37 images were predicted before." in console.export_text()


def test_changed_image_or_model_is_predicted_again(finished, new_run, console, tmp_path, monkeypatch):
    images = write_images(tmp_path / "images", count=4)
    part = Path(new_run.workdir) / "predictions.jsonl.part"
    monkeypatch.setattr(predict._PartialRows, "delete", lambda self: None)
    predict.predict(new_run, images, console)
    assert len(part.read_text().splitlines()) == 1 + 12
    Image.new("RGB", (16, 16), "white").save(images / "dark" / "0.png")
    os.utime(images / "dark" / "0.png", ns=(5, 5))
    rows = {row["image"]: row for row in predict.predict(new_run, images, console)}
    assert "11 of 12 images were predicted before." in console.export_text()
    assert len(rows) == 12
    assert rows[str(images / "dark" / "0.png")]["top"][0]["class"] == "bright"
    lines = part.read_text().splitlines()
    part.write_text("\n".join(['{"parameters_digest": "of another model"}', *lines[1:]]) + "\n")
    predict.predict(new_run, images, console)
    assert "predicted before" not in console.export_text()


def test_bad_files_stop_or_are_skipped(new_run, console, tmp_path):
    images = write_images(tmp_path / "images", count=1)
    (images / "bad.jpg").write_bytes(b"x")
    (images / ".hidden.png").write_bytes(b"x")
    (images / "dangling.png").symlink_to(tmp_path / "nowhere")
    assert len(predict.predict(new_run, images, console)) == 3
    assert "Warning: 2 files were skipped:" in console.export_text()
    with pytest.raises(UserError, match=r"bad\.jpg cannot be read"):
        predict.predict(schema.override(new_run, {"data.on_error": "error"}), images, console)
    with pytest.raises(UserError, match=r"None of the 1 images can be used; first error: .*bad\.jpg"):
        predict.predict(new_run, images / "bad.jpg", console)


def test_two_predictions_at_once_are_refused(new_run, console, tmp_path):
    images = write_images(tmp_path / "images", count=1)
    part = predict._PartialRows(Path(new_run.workdir) / "predictions.jsonl.part", "x")
    with pytest.raises(UserError, match="Another process is predicting"):
        predict.predict(new_run, images, console)
    part.close()


def test_many_images_print_no_lines(new_run, console, tmp_path, monkeypatch):
    images = write_images(tmp_path / "images", count=2)
    monkeypatch.setattr(predict, "MAX_PRINTED", 5)
    assert len(predict.predict(new_run, images, console)) == 6
    assert console.export_text().count("bright") == 0


def test_turned_photo_is_predicted_upright(new_run, console, tmp_path):
    pixels = np.full((16, 16, 3), 30, np.uint8)
    pixels[:, :8] = 220
    upright = Image.fromarray(pixels)
    upright.save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "b.png", exif=exif)
    a, b = (predict.predict(new_run, tmp_path / name, console)[0] for name in ("a.png", "b.png"))
    assert a["probabilities"] == b["probabilities"]


def test_all_networks_see_the_same_part_of_the_image(finished, tmp_path):
    config, *_ = finished
    c = config_of(tmp_path / "student", config.data.path)
    c.strategy.name, c.strategy.teachers = "distillation", (f"workdir:{config.workdir}",)
    c.data.resize = "pad"
    experiment = prepare(schema.parse(c))
    assert experiment.predictor.preprocess.center_crop is False
    assert experiment.networks["teacher0"].preprocess.center_crop is False
    c.data.resize = None
    assert prepare(schema.parse(c)).networks["teacher0"].preprocess.center_crop is True


def test_config_for_images_needs_only_a_path(tmp_path):
    images = write_images(tmp_path / "images", count=3, sizes=((200, 160),))
    config = load_config_file(ROOT / "configs" / "images.py")
    experiment = prepare(schema.override(config, {"data.path": str(images)}))
    preprocess = experiment.predictor.preprocess
    assert (preprocess.size, preprocess.crop, preprocess.center_crop) == (128, 0.875, True)
    assert experiment.data.train.images.shape[1:] == (147, 147, 3)
    assert [plan.phase.name for plan in experiment.plans] == ["linear probe", "fine-tune"]


def test_folder_needs_size_and_path_before_weights(tmp_path):
    c = config_of(tmp_path / "run", tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"data\.path=.*nowhere is not a folder"):
        prepare(schema.parse(c))
    c.data.path, c.data.image_size = str(write_images(tmp_path / "images", count=3)), None
    with pytest.raises(UserError, match=r"needs data\.image_size"):
        prepare(schema.parse(c))
    assert not (tmp_path / "run").exists()
