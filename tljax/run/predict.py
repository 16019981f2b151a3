"""`--mode=predict`: what a finished run's best model says of new pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from tljax.config import Config
from tljax.data.sources.images import IMAGE_SUFFIXES, read_image, resize
from tljax.errors import UserError
from tljax.run.evaluate import finished
from tljax.tasks import PredictionSet


def predict(config: Config, source: Path, console: Console) -> list[dict]:
    """Answers to one picture, or to every picture in a folder, told and written to the config's workdir.

    What is told of each goes to predictions.jsonl. A mask goes to predictions/NAME.mask.png, whose palette's indices
    are the classes, and all boxes to predictions/results.json, in COCO's form, the picture's file being its id; both
    are of the picture's own size. predictions/NAME.overlay.png shows what was found.

    Returns:
      A row per picture: `picture`, and `top`, a list of class and probability; or `mask`, a file, and `shares`, that of
      each class that was found; or `boxes`, a list of class, score and box [y0, x0, y1, x1] in pixels.
    """
    files = _files(source)
    network, best, recorded = finished(config)
    pictures = [read_image(path) for path in files.values()]
    images = np.stack([_like_data(picture, recorded["data"]["image_shape"]) for picture in pictures])
    workdir = Path(config.workdir)
    outputs, side = network.predict(best, {"image": images}), network.preprocess.size
    found = PredictionSet(files, pictures, network.classes, side, outputs, workdir / "predictions")
    rows = []
    for path, (row, text) in zip(files.values(), network.task.write_predictions(found), strict=True):
        rows.append({"image": str(path), **row})
        console.print(f"{path}: {text}", highlight=False, markup=False, soft_wrap=True)
    out = workdir / "predictions.jsonl"
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    also = f" and {found.folder}" if found.folder.is_dir() else ""
    console.print(f"Written to {out}{also}", highlight=False, markup=False, soft_wrap=True)
    return rows


def _files(source: Path) -> dict[str, Path]:
    """Pictures by names of their own: their files' below the folder, with an ending only where two differ in it."""
    if source.is_dir():
        paths = sorted(p for p in source.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        if not paths:
            raise UserError(f"{source} has no pictures ({', '.join(IMAGE_SUFFIXES)}).")
    elif source.is_file():
        paths, source = [source], source.parent
    else:
        raise UserError(f"There is no picture or folder {source}.")
    short = ["-".join(path.relative_to(source).with_suffix("").parts) for path in paths]
    return {
        name if short.count(name) == 1 else f"{name}{path.suffix}": path
        for name, path in zip(short, paths, strict=True)
    }


def _like_data(picture: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """A picture as the data has them, [H, W, C] with C 1 or 3, so that it meets the same preprocessing."""
    height, width, channels = shape
    if picture.shape[-1] != channels:
        mode = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
        picture = np.atleast_3d(np.asarray(mode.convert("L" if channels == 1 else "RGB")))
    return resize(picture, (height, width))
