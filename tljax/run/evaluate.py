"""What a finished run's best model says: its metrics again, or the classes of new pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from tljax import data as data_of
from tljax.checkpoints import Checkpoints
from tljax.config import Config, differences
from tljax.data.sources import resize_picture
from tljax.errors import UserError
from tljax.models.state import Leaves
from tljax.report.report import METRICS, number
from tljax.run.network import Network
from tljax.run.workdir import WorkDir
from tljax.strategies import with_preset_head
from tljax.weights import Preprocess, parameters_digest

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def evaluate(config: Config, console: Console) -> dict:
    """Judges the best model of a run again, on validation and test, and says whether the numbers are the recorded ones.

    This opens the test split once more; it chooses nothing.
    """
    network, best, recorded = finished(config)
    data = data_of.load(config.data, config.seed)
    if changed := differences(recorded["data"], data.describe()):
        raise UserError(f"The data are not those of the run: {'; '.join(changed)}.")
    again = dict(recorded)
    again["valid"], _ = network.judge(best, data.valid.labels, {"image": data.valid.images})
    test = data.test.open()
    again["test"], _ = network.judge(best, test.labels, {"image": test.images})
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
    network, best, recorded = finished(config)
    images = np.stack([_read(path, recorded["data"]["picture"]) for path in paths])
    probabilities = network.predict(best, {"image": images})
    rows = []
    for path, row in zip(paths, probabilities, strict=True):
        order = np.argsort(-row, kind="stable")[:top]
        best_classes = [{"class": network.classes[i], "probability": float(row[i])} for i in order]
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


def finished(config: Config) -> tuple[Network, Leaves, dict]:
    """The network of a finished run, its best leaves, and its result; neither data nor source weights are needed."""
    config, result = with_preset_head(config), WorkDir(config.workdir).read("result.json")
    network = Network.build(config, result["data"]["classes"], Preprocess.from_dict(result["preprocess"]))
    with Checkpoints(Path(config.workdir)) as checkpoints:
        leaves = checkpoints.read_params(checkpoints.best)
        return network, network.mesh.put({path: leaves[path] for path in network.leaves()}), result


def _pictures(source: Path) -> list[Path]:
    if source.is_dir():
        paths = sorted(p for p in source.rglob("*") if p.suffix.lower() in PICTURES)
        if not paths:
            raise UserError(f"{source} has no pictures ({', '.join(PICTURES)}).")
        return paths
    if not source.is_file():
        raise UserError(f"There is no picture or folder {source}.")
    return [source]


def _read(path: Path, shape: Sequence[int]) -> np.ndarray:
    """A picture as the data has them, [H, W, C] with C 1 or 3, so that it meets the same preprocessing."""
    from PIL import Image, UnidentifiedImageError

    height, width, channels = shape
    try:
        with Image.open(path) as picture:
            image = np.atleast_3d(np.asarray(picture.convert("L" if channels == 1 else "RGB")))
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{path} is not a readable picture: {error}.") from error
    return image if image.shape == (height, width, channels) else resize_picture(image, (height, width))
