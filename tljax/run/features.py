"""`--mode=features`: write the features of a frozen network's stages to .npz files."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tljax import __version__
from tljax import config as schema
from tljax.config import Config
from tljax.data import DataSplits, Split
from tljax.errors import UserError, did_you_mean
from tljax.features.extract import extract, feature_shapes, make_feature_fn
from tljax.features.probes import PROBES
from tljax.inference.predictor import Predictor
from tljax.models.params import Variables
from tljax.report.markdown import format_bytes
from tljax.run.evaluate import load_finished
from tljax.run.experiment import Experiment, prepare
from tljax.run.sweep import expand_grid
from tljax.run.workdir import WorkDir, config_hash, diff_configs
from tljax.strategies import with_preset_head
from tljax.weights import params_hash

SPLITS = ("train", "valid", "unlabelled", "test")


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureExtractor:
    """A frozen network and the data to extract features of.

    Attributes:
      config: of the run.
      data: the splits.
      predictor: the model, its preprocessing and devices.
      variables: of the model, on the devices.
      weights: name and SHA-256 of the weights; None: the network is random.
      stages: names of the stages whose features are extracted.
    """

    config: Config
    data: DataSplits
    predictor: Predictor
    variables: Variables
    weights: dict | None
    stages: tuple[str, ...]

    @functools.cached_property
    def feature_fn(self) -> Callable:
        """The compiled forward pass, (variables, uint8 images) → features by stage."""
        config = self.config
        return make_feature_fn(
            self.predictor.flat.graphdef,
            self.predictor.preprocess,
            config.train.compute_dtype,
            self.stages,
            config.features.pool,
        )

    def extract(self, split: Split, name: str, console: Console) -> dict[str, np.ndarray]:
        """Return the features of a split by stage, float32 [N, c] or [N, h, w, c].

        Args:
          split: the images.
          name: of the progress bar.
          console: for the progress bar.
        """
        with _progress_bar(console, name, len(split)) as advance:
            batch_size = self.config.train.batch_size
            features = extract(self.feature_fn, self.variables, split, batch_size, self.predictor.mesh, advance)
        # jit sorts its outputs by name.
        return {stage: features[stage] for stage in self.stages}

    def feature_bytes(self, split: Split) -> int:
        """Return the size of the features of a split in bytes."""
        shapes = feature_shapes(self.feature_fn, self.variables, split)
        return 4 * len(split) * sum(math.prod(shape) for shape in shapes.values())

    @functools.cached_property
    def about(self) -> dict:
        """What the features depend on, as JSON; `backbone_digest` is the hash of all variables but the head's."""
        config = self.config
        return {
            "backbone": config.model.backbone,
            "weights": self.weights,
            "backbone_digest": params_hash({p: x for p, x in self.variables.items() if not p.startswith("head/")}),
            "preprocess": schema.to_dict(self.predictor.preprocess),
            "stages": list(self.stages),
            "pool": config.features.pool,
            "precision": config.train.compute_dtype,
            "config_digest": config_hash(config),
            "tljax": __version__,
        }


def expand_seeds(config: Config, mode: str) -> list[Config]:
    """Return the config, or one per seed of a sweep over `seed` alone, each with its own work directory.

    The folder of the trials of an older version is renamed.

    Args:
      config: with or without a sweep.
      mode: of the command line, for the error message.

    Raises:
      UserError: the sweep varies another field.
    """
    if not config.sweep:
        return [config]
    if set(config.sweep) == {"seed"}:
        WorkDir(config.folder).rename_old_trials()
        return [trial.config for trial in expand_grid(config)]
    raise UserError(
        f"--mode={mode} can sweep over seed only, but this config sweeps over {', '.join(config.sweep)}: choose one "
        f"of its runs with --workdir={config.workdir}/trials/NAME, or a config without the sweep."
    )


def prepare_extraction(config: Config) -> Experiment:
    """Prepare the run and check the names in `config.features`; write nothing.

    Raises:
      UserError: no such split, stage or probe, a task other than classification, or an error of `prepare`.
    """
    for field, names, valid_names in (
        ("splits", config.features.splits, SPLITS),
        ("probes", config.features.probes, PROBES),
    ):
        if not names:
            raise UserError(f"features.{field} is empty{did_you_mean('', valid_names)}")
        for name in names:
            if name not in valid_names:
                raise UserError(f'features.{field}: there is no "{name}"{did_you_mean(name, valid_names)}')
    experiment = prepare(config)
    model = experiment.predictor.model
    if experiment.predictor.task.spatial or experiment.data.train.labels.ndim > 1:
        raise UserError(f"Features and probes need model.head='classifier', not {config.model.head!r}.")
    for stage in config.features.stages:
        if stage in model.unused_stages:
            raise UserError(
                f"features.stages: {stage} is not built, because model.out_stage is {config.model.out_stage!r}."
            )
        if stage not in model.stage_names:
            raise UserError(f'features.stages: there is no stage "{stage}"{did_you_mean(stage, model.stage_names)}')
    return experiment


def load_extractor(
    config: Config, console: Console, default_stages: Callable[[Sequence[str]], Sequence[str]]
) -> FeatureExtractor:
    """Load the best model of the finished run in the work directory, or else the source weights.

    Args:
      config: with weights that exist.
      console: for a line about the weights.
      default_stages: returns, from the names of all stages, those to extract if `features.stages` is empty.

    Raises:
      UserError: an error of `check`, or the work directory holds a run of another config or other data.
    """
    experiment = prepare_extraction(config)
    config = experiment.config
    if WorkDir(config.folder).read("result.json") is not None:
        predictor, variables, weights = _load_best(experiment)
        origin = f"the best model of {config.workdir}"
    else:
        predictor = experiment.predictor
        variables = predictor.mesh.put(experiment.load_variables())
        source = experiment.source if experiment.strategy.pretrained else None
        weights = source.describe() if source else None
        origin = weights["name"] if weights else "random weights"
    stages = tuple(dict.fromkeys(config.features.stages or default_stages(predictor.model.stage_names)))
    side = predictor.preprocess.size
    console.print(
        f"{config.model.backbone} with {origin}, seed {config.seed}, images of {side}×{side}: {', '.join(stages)}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if weights is None:
        console.print("Warning: no weights were loaded; these are features of a random network.", style="yellow")
    return FeatureExtractor(config, experiment.data, predictor, variables, weights, stages)


def _load_best(experiment: Experiment) -> tuple[Predictor, Variables, dict]:
    """Return predictor, variables and origin of the best model in the work directory of a finished run."""
    folder = WorkDir(experiment.config.folder)
    if config_hash(with_preset_head(folder.read_config())) != config_hash(experiment.config):
        raise UserError(f"{folder.path} holds a run of another config: choose another --workdir, or omit --config.")
    predictor, variables, result = load_finished(experiment.config)
    if differences := diff_configs(result["data"], experiment.data.describe()):
        raise UserError(f"The data differ from those of the run: {'; '.join(differences)}.")
    return predictor, variables, {"name": f"workdir:{folder.path}", "sha256": result["parameters_digest"]}


def write(config: Config, console: Console) -> list[Path]:
    """Write WORKDIR/features/SPLIT.npz for each of `features.splits`, atomically, and return the paths.

    Each file has the features under the names of the stages (float32 [N, c], or [N, h, w, c] with pool "none"),
    `label` (int32 [N]; not of unlabelled images), `image_hash` (a hash of each image's content, 32 hexadecimal digits),
    `classes` (names), and `about`, a JSON object with everything that the features depend on.

    Args:
      config: with weights that exist.
      console: for progress and a summary of each file.

    Raises:
      UserError: an error of `load_extractor`, or unlabelled images that the config does not have.
    """
    extractor = load_extractor(config, console, default_stages=tuple)
    if "unlabelled" in config.features.splits and extractor.data.unlabelled is None:
        raise UserError("features.splits has unlabelled, but there are no unlabelled images: set data.unlabelled.")
    folder = config.folder / "features"
    return [_write_split(extractor, name, folder, console) for name in dict.fromkeys(config.features.splits)]


def _write_split(extractor: FeatureExtractor, name: str, folder: Path, console: Console) -> Path:
    split, fingerprint = _open_split(extractor.data, name)
    if extractor.config.features.pool == "none":
        size = format_bytes(extractor.feature_bytes(split))
        console.print(f"{name}: {size} will be written", highlight=False, soft_wrap=True)
    features = extractor.extract(split, name, console)
    about = extractor.about | {"split": {"name": name, "fingerprint": fingerprint, "size": len(split)}}
    labels = {} if name == "unlabelled" else {"label": split.labels}
    path = folder / f"{name}.npz"
    _save(
        path,
        **features,
        **labels,
        image_hash=np.array([digest.hex() for digest in split.image_hashes]),
        classes=np.array(extractor.predictor.classes),
        about=np.array(json.dumps(about)),
    )
    shapes = ", ".join(f"{stage} {'×'.join(map(str, x.shape[1:]))}" for stage, x in features.items())
    console.print(f"{path}: {len(split):,} images, {shapes}", highlight=False, markup=False, soft_wrap=True)
    if name == "test":
        console.print("This file has the labels of the test split: do not choose anything by them.", style="yellow")
    return path


def _open_split(data: DataSplits, name: str) -> tuple[Split, str]:
    """Return a split and its fingerprint; the labels of unlabelled images are zeros without a meaning."""
    if name == "unlabelled":
        assert data.unlabelled is not None  # `write` checks it
        images = data.unlabelled.images
        return Split(images, np.zeros(len(images), np.int32)), data.unlabelled.fingerprint
    split = data.test.open() if name == "test" else getattr(data, name)
    return split, split.fingerprint


def _save(path: Path, **arrays: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    with partial.open("wb") as file:
        np.savez(file, **arrays)
    partial.replace(path)


@contextlib.contextmanager
def _progress_bar(console: Console, name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that advances the bar by a number of images."""
    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, total=total)
        yield lambda images: progress.advance(task, images)
