"""`--mode=predict`: what a finished run's best model says of new pictures."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from tljax.config import Config
from tljax.data.annotated.pictures import ENDINGS, read_picture, resize
from tljax.errors import UserError
from tljax.run.evaluate import finished
from tljax.run.network import Network
from tljax.tasks import classification, detection

# Boxes that are less certain are in the results, but neither drawn nor told.
SHOWN = 0.3


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """Pictures with what a network says of them.

    Attributes:
      files: of the pictures.
      pictures: uint8 [H, W, C], each of its own size.
      network: that answered.
      answers: {name: [N, ...]}.
      folder: for what is written, besides predictions.jsonl, which lies in the run's.
    """

    files: dict[str, Path]
    pictures: list[np.ndarray]
    network: Network
    answers: dict[str, np.ndarray]
    folder: Path


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
    pictures = [read_picture(path) for path in files.values()]
    images = np.stack([_like_data(picture, recorded["data"]["picture"]) for picture in pictures])
    workdir = Path(config.workdir)
    found = Found(files, pictures, network, network.predict(best, {"image": images}), workdir / "predictions")
    rows = []
    for path, (row, text) in zip(files.values(), OF_TASK[network.task.name](found), strict=True):
        rows.append({"picture": str(path), **row})
        console.print(f"{path}: {text}", highlight=False, markup=False, soft_wrap=True)
    out = workdir / "predictions.jsonl"
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    also = f" and {found.folder}" if found.folder.is_dir() else ""
    console.print(f"Written to {out}{also}", highlight=False, markup=False, soft_wrap=True)
    return rows


def _classes(found: Found, top: int = 5) -> Iterator[tuple[dict, str]]:
    for row in classification.probabilities(found.answers):
        order = np.argsort(-row, kind="stable")[:top]
        best = [{"class": found.network.classes[i], "probability": float(row[i])} for i in order]
        yield {"top": best}, "  ".join(f"{c['class']} {100 * c['probability']:.1f} %" for c in best)


def _masks(found: Found) -> Iterator[tuple[dict, str]]:
    from tljax.report import overlays

    classes = found.network.classes
    for name, picture, small in zip(found.files, found.pictures, found.answers["classes"], strict=True):
        mask = resize(small, picture.shape[:2], Image.Resampling.NEAREST)
        path = overlays.mask_png(mask, found.folder / f"{name}.mask.png")
        _save(overlays.mask_overlay(picture, mask, classes), found.folder / f"{name}.overlay.png")
        kinds, counts = np.unique(mask, return_counts=True)
        shares = {classes[kind]: count / mask.size for kind, count in zip(kinds, counts.tolist(), strict=True)}
        text = "  ".join(f"{kind} {100 * share:.1f} %" for kind, share in shares.items())
        yield {"mask": str(path), "shares": shares}, text


def _boxes(found: Found) -> Iterator[tuple[dict, str]]:
    from tljax.report import overlays

    classes, side = found.network.classes, found.network.preprocess.size
    sizes = [picture.shape[:2] for picture in found.pictures]
    results = detection.results(found.answers, [path.name for path in found.files.values()], sizes, side)
    found.folder.mkdir(parents=True, exist_ok=True)
    (found.folder / "results.json").write_text(json.dumps(results))
    columns = (found.answers[key] for key in ("boxes", "classes", "scores"))
    for name, picture, boxes, kinds, scores in zip(found.files, found.pictures, *columns, strict=True):
        height, width = picture.shape[:2]
        boxes, shown = boxes * np.array([height, width] * 2) / side, scores >= SHOWN
        drawn = overlays.box_overlay(picture, boxes[shown], kinds[shown], scores[shown], classes)
        _save(drawn, found.folder / f"{name}.overlay.png")
        rows = zip(kinds.tolist(), scores.tolist(), boxes.tolist(), strict=True)
        listed = [{"class": classes[kind], "score": score, "box": box} for kind, score, box in rows if kind >= 0]
        told = [f"{one['class']} {one['score']:.2f}" for one in listed if one["score"] >= SHOWN]
        yield {"boxes": listed}, "  ".join(told) or "nothing"


OF_TASK = {"classification": _classes, "segmentation": _masks, "detection": _boxes}


def _files(source: Path) -> dict[str, Path]:
    """Pictures by names of their own: their files' below the folder, with an ending only where two differ in it."""
    if source.is_dir():
        paths = sorted(p for p in source.rglob("*") if p.suffix.lower() in ENDINGS)
        if not paths:
            raise UserError(f"{source} has no pictures ({', '.join(ENDINGS)}).")
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


def _save(image: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
