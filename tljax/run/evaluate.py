"""What a finished run's best model says: its metrics again, or the classes of new pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from tljax.checkpoints import Checkpoints
from tljax.config import Config
from tljax.data import Split
from tljax.data.sources import resize_picture
from tljax.errors import UserError
from tljax.models.state import Leaves
from tljax.report.report import METRICS, number
from tljax.run.prepare import Prepared, prepare
from tljax.run.workdir import WorkDir
from tljax.train.evaluate import predict_split
from tljax.weights import parameters_digest

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def evaluate(config: Config, console: Console) -> dict:
    """Judges the best model of a run again, on validation and test, and says whether the numbers are the recorded ones.

    This opens the test split once more; it chooses nothing.
    """
    prepared, best = _best_model(config)
    recorded = WorkDir(config.workdir).read("result.json")
    again = dict(recorded)
    again["valid"], _ = prepared.judge(best, prepared.data.valid)
    again["test"], _ = prepared.judge(best, prepared.data.test.open())
    again["parameters_digest"] = parameters_digest(best)
    show(again, config.workdir, console)
    worst = max(
        (
            abs(again[split][key] - recorded[split][key])
            for split in ("valid", "test")
            for key, _ in METRICS
            if recorded[split][key] is not None
        ),
        default=0.0,
    )
    same = again["parameters_digest"] == recorded["parameters_digest"]
    console.print(
        f"The parameters are {'the recorded ones' if same else 'NOT the recorded ones'}; the largest difference from "
        f"the recorded metrics is {worst:.2g}.",
        highlight=False,
    )
    WorkDir(config.workdir).write("evaluation.json", again)
    return again


def predict(config: Config, source: Path, console: Console, top: int = 5) -> list[dict]:
    """Classes of one picture, or of every picture in a folder, printed and written to predictions.jsonl.

    Returns:
      A row per picture: `picture`, and `top`, a list of class and probability.
    """
    paths = _pictures(source)
    prepared, best = _best_model(config)
    images = np.stack([_read(path, prepared) for path in paths])
    split = Split(images, np.zeros(len(images), np.int32))
    probabilities = predict_split(prepared.predictor(), best, split, config.train.batch_size, prepared.mesh)
    rows = []
    for path, row in zip(paths, probabilities, strict=True):
        order = np.argsort(-row, kind="stable")[:top]
        best_classes = [{"class": prepared.data.classes[i], "probability": float(row[i])} for i in order]
        rows.append({"picture": str(path), "top": best_classes})
        listed = "  ".join(f"{c['class']} {100 * c['probability']:.1f} %" for c in best_classes)
        console.print(f"{path}: {listed}", highlight=False, markup=False, soft_wrap=True)
    out = Path(config.workdir) / "predictions.jsonl"
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    console.print(f"Written to {out}", highlight=False, markup=False)
    return rows


def show(result: dict, workdir: str, console: Console) -> None:
    """The table of a result."""
    table = Table()
    for name in ("metric", "validation", "test"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for key, name in METRICS:
        table.add_row(name, number(result["valid"][key]), number(result["test"][key]))
    console.print(table)
    console.print(f"Report: {workdir}/report.md", highlight=False, markup=False)


def _best_model(config: Config) -> tuple[Prepared, Leaves]:
    prepared = prepare(config)
    WorkDir(config.workdir).check(config, prepared.inputs)
    with Checkpoints(Path(config.workdir)) as checkpoints:
        like = prepared.mesh.put(prepared.initial_leaves())
        return prepared, checkpoints.restore(checkpoints.best, {"params": like})["params"]


def _pictures(source: Path) -> list[Path]:
    if source.is_dir():
        paths = sorted(p for p in source.rglob("*") if p.suffix.lower() in PICTURES)
        if not paths:
            raise UserError(f"{source} has no pictures ({', '.join(PICTURES)}).")
        return paths
    if not source.is_file():
        raise UserError(f"There is no picture or folder {source}.")
    return [source]


def _read(path: Path, prepared: Prepared) -> np.ndarray:
    """A picture as the data has them: grey or colour, and of their size, so that it meets the same preprocessing."""
    from PIL import Image, UnidentifiedImageError

    _, height, width, channels = prepared.data.train.images.shape
    try:
        with Image.open(path) as picture:
            picture = picture.convert("L" if channels == 1 else "RGB")
            image = np.atleast_3d(np.asarray(picture))
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{path} is not a readable picture: {error}.") from error
    return image if image.shape == (height, width, channels) else resize_picture(image, (height, width))
