"""`--mode=predict`: predictions of a finished run's best model for new images."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from rich.console import Console

from tljax.config import Config
from tljax.data.image_store import read_all
from tljax.data.progress import track
from tljax.data.sources.images import IMAGE_SUFFIXES, ImageFormat, read_image, resize
from tljax.errors import UserError
from tljax.features.extract import inference_batch_size
from tljax.inference.predictor import Predictor
from tljax.models.params import Variables
from tljax.run.evaluate import load_finished
from tljax.tasks import PredictionSet

# At most so many bytes of images are in memory, besides those that threads decode.
MAX_IMAGE_BYTES = 1 << 28
# Of more images only a progress bar is shown.
MAX_PRINTED = 100


def predict(config: Config, source: Path, console: Console) -> list[dict]:
    """Predict an image, or all images in a folder, as `write_predictions` does, and return the rows.

    Args:
      config: of a finished run.
      source: an image file, or a folder.
      console: for one line per image.

    Returns:
      One row per image: `image`, its path, and `top`, a list of classes and probabilities, and `probabilities` of all
      classes; or `mask`, a path, and `shares`, the fraction of pixels of each class found; or `boxes`, a list of class,
      score and box [y0, x0, y1, x1] in pixels.

    Raises:
      UserError: no images, or a file that is not an image if `data.on_error` is "error".
    """
    return list(_read_rows(write_predictions(config, source, console)))


def write_predictions(config: Config, source: Path, console: Console) -> Path:
    """Predict an image, or all images in a folder, and write the predictions to the work directory.

    predictions.jsonl has one row per image, and predictions.csv the classes and probabilities of a classifier. Masks
    are written to predictions/NAME.mask.png, whose palette indices are the classes, and all boxes to
    predictions/results.json in COCO format, with the name of the file as image id; both have the size of the original
    image. predictions/NAME.overlay.png shows masks or boxes on the image.

    Rows are collected in predictions.jsonl.part. If the process is killed, another call with the same model continues
    with the images that have no row there, or have changed.

    Args:
      config: of a finished run.
      source: an image file, or a folder.
      console: for one line per image.

    Returns:
      The path of predictions.jsonl.

    Raises:
      UserError: no images, or a file that is not an image if `data.on_error` is "error".
    """
    files = _find_images(source)
    predictor, variables, result = load_finished(config)
    read = _make_reader(config, result, predictor.preprocess.interpolation, predictor.task.spatial)
    batch_size = inference_batch_size(predictor.preprocess.side, predictor.mesh)
    out = config.folder / "predictions.jsonl"
    skipped: list[UserError] = []
    with contextlib.closing(_PartialRows(Path(f"{out}.part"), result["parameters_digest"])) as partial:
        todo = {name: path for name, path in files.items() if _stamp(path) not in partial.stamps}
        if len(todo) < len(files):
            console.print(f"{len(files) - len(todo)} of {len(files)} images were predicted before.", highlight=False)
        batches = _read_batches(todo, read, batch_size, skipped, config.data.on_error)
        for path, row, text in _predict_batches(predictor, variables, batches, config.folder / "predictions"):
            partial.add(_stamp(path), row)
            if len(files) <= MAX_PRINTED:
                console.print(f"{path}: {text}", highlight=False, markup=False, soft_wrap=True)
        if skipped and len(skipped) == len(files):
            raise UserError(f"None of the {len(files)} images can be used; first error: {skipped[0]}")
        partial.write_rows(map(_stamp, files.values()), out)
        written = [out, *_write_tables(out, predictor, config.folder / "predictions")]
        partial.delete()
    _print_summary(written, skipped, console)
    return out


def _predict_batches(
    predictor: Predictor, variables: Variables, batches: Iterable[_Batch], folder: Path
) -> Iterator[tuple[Path, dict, str]]:
    """Yield path, row of predictions.jsonl and text of each image."""
    for files, images, inputs in batches:
        outputs = predictor.predict(variables, {"image": np.stack(inputs)})
        predictions = PredictionSet(files, images, predictor.classes, predictor.preprocess.side, outputs, folder)
        for path, (row, text) in zip(files.values(), predictor.task.write_predictions(predictions), strict=True):
            yield path, {"image": str(path), **row}, text


class _Batch(NamedTuple):
    """Images of a batch.

    Attributes:
      files: {unique name: path} of the good files.
      images: for `PredictionSet`.
      inputs: uint8 [H, W, C], all of the size of the stored images.
    """

    files: dict[str, Path]
    images: list[np.ndarray]
    inputs: list[np.ndarray]


def _make_reader(config: Config, result: Mapping, interpolation: str, spatial: bool) -> Callable:
    """Return the function from a path to an image for `PredictionSet` and an input like the stored images of the run.

    Args:
      config: of the run.
      result: content of result.json.
      interpolation: of the run's preprocessing.
      spatial: whether predictions have locations in the image, which is then needed at full size.
    """
    shape = result["data"]["image_shape"]
    mode = result["data"].get("resize")
    background = config.data.background

    def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
        if mode is None:
            image = read_image(path)
            return image, _match_data(image, shape)
        image_format = ImageFormat(shape[0], mode, interpolation, background)
        image = read_image(path, background, oriented=True) if spatial else image_format.read(path)
        return image, _match_data(image_format.fit(image) if spatial else image, shape)

    return read


def _read_batches(
    files: Mapping[str, Path], read: Callable, batch_size: int, skipped: list[UserError], on_error: str
) -> Iterator[_Batch]:
    """Yield batches of images.

    Args:
      files: {unique name: path}.
      read: from `_make_reader`.
      batch_size: number of images in a batch; there are fewer if they are large.
      skipped: errors of bad files are appended to it.
      on_error: "error": a bad file raises UserError; "skip".
    """
    images = read_all(files.values(), read, ahead=16)
    batch, size = _Batch({}, [], []), 0
    for (name, path), item in zip(files.items(), track(images, "predicting", len(files)), strict=True):
        if isinstance(item, UserError):
            if on_error == "error":
                raise item
            skipped.append(item)
            continue
        batch.files[name] = path
        batch.images.append(item[0])
        batch.inputs.append(item[1])
        size += item[0].nbytes
        if len(batch.files) == batch_size or size > MAX_IMAGE_BYTES:
            yield batch
            batch, size = _Batch({}, [], []), 0
    if batch.files:
        yield batch


class _PartialRows:
    """The file of rows that are written while predicting.

    Its first line has the digest of the model; each other one a row with path, size and time of its file.

    Args:
      path: of the file.
      digest: of the parameters of the model.

    Attributes:
      stamps: (path, size, time) of the files that have a row.
    """

    def __init__(self, path: Path, digest: str):
        self.path = path
        self.stamps: set[tuple] = set()
        self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"Another process is predicting in {path.parent}.") from error
        header = json.dumps({"parameters_digest": digest}).encode() + b"\n"
        self._file.seek(0)
        valid = len(header) if self._file.readline() == header else 0
        for line in self._file if valid else ():
            try:
                self.stamps.add(tuple(json.loads(line)["file"]))
            except (ValueError, KeyError, TypeError):
                break
            if not line.endswith(b"\n"):  # the process was killed while it wrote this line
                break
            valid += len(line)
        self._file.truncate(valid)
        if not valid:
            self._file.write(header)

    def add(self, stamp: tuple, row: Mapping[str, Any]) -> None:
        """Append a row and give it to the operating system, so that it survives the process."""
        self._file.write(json.dumps({"file": stamp, "row": row}).encode() + b"\n")
        self._file.flush()
        self.stamps.add(stamp)

    def write_rows(self, stamps: Iterable[tuple], out: Path) -> None:
        """Write the rows of the given files to `out`."""
        wanted = set(stamps)
        complete = Path(f"{out}.new")
        self._file.seek(0)
        self._file.readline()
        with complete.open("w", encoding="utf-8") as file:
            for line in self._file:
                entry = json.loads(line)
                if tuple(entry["file"]) in wanted:
                    file.write(json.dumps(entry["row"]) + "\n")
        complete.replace(out)

    def delete(self) -> None:
        """Delete this file, when everything else is written."""
        self.path.unlink()

    def close(self) -> None:
        """Close the file; its rows stay for another call."""
        self._file.close()


def _stamp(path: Path) -> tuple[str, int, int]:
    """Return path, size and time of a file."""
    try:
        stat = path.stat()
    except OSError:  # a broken link
        return str(path), -1, -1
    return str(path), stat.st_size, stat.st_mtime_ns


def _read_rows(path: Path) -> Iterator[dict]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _write_tables(rows_path: Path, predictor: Predictor, folder: Path) -> list[Path]:
    """Write the files about all images together, from predictions.jsonl, and return what there is besides it.

    predictions.csv has file, class, probability and one column for each class, if the rows have probabilities.
    """
    path = rows_path.with_suffix(".csv")
    path.unlink(missing_ok=True)
    if "probabilities" in next(_read_rows(rows_path), {}):
        partial = Path(f"{path}.part")
        with partial.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "class", "probability", *predictor.classes])
            for row in _read_rows(rows_path):
                best = row["top"][0]
                writer.writerow([row["image"], best["class"], best["probability"], *row["probabilities"].values()])
        partial.replace(path)
    if predictor.task.merge_predictions is not None:
        predictor.task.merge_predictions(_read_rows(rows_path), predictor.classes, folder)
    return [p for p in (path, folder) if p.exists()]


def _print_summary(paths: Iterable[Path], skipped: Sequence[UserError], console: Console) -> None:
    verbatim: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}
    if skipped:
        console.print(f"Warning: {len(skipped)} files were skipped:", style="yellow", **verbatim)
        for error in skipped[:5]:
            console.print(f"  {error}", **verbatim)
    console.print(f"Written to {' and '.join(map(str, paths))}", **verbatim)


def _find_images(source: Path) -> dict[str, Path]:
    """Return {unique name: path}: paths below the folder, with a suffix only where two files differ in nothing else."""
    if source.is_dir():
        paths = sorted(
            p for p in source.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")
        )
        if not paths:
            raise UserError(f"{source} has no images ({', '.join(IMAGE_SUFFIXES)}).")
    elif source.is_file():
        paths = [source]
        source = source.parent
    else:
        raise UserError(f"There is no image or folder {source}.")
    names = ["-".join(path.relative_to(source).with_suffix("").parts) for path in paths]
    counts = Counter(names)
    return {
        name if counts[name] == 1 else f"{name}{path.suffix}": path for name, path in zip(names, paths, strict=True)
    }


def _match_data(image: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return an image with the size and channels of the data, [H, W, C], so that its preprocessing is the same."""
    height, width, channels = shape
    if image.shape[-1] != channels:
        original = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        image = np.atleast_3d(np.asarray(original.convert("L" if channels == 1 else "RGB")))
    return resize(image, (height, width))
