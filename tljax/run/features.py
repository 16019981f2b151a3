"""`--mode=features`: what a network's stages make of the pictures, as files that anything can read."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

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
from tljax.run.evaluate import finished
from tljax.run.experiment import Experiment, prepare
from tljax.run.sweep import expand_grid
from tljax.run.workdir import WorkDir, config_hash, diff_configs
from tljax.strategies import with_preset_head
from tljax.weights import params_hash

SPLITS = ("train", "valid", "unlabelled", "test")


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureExtractor:
    """A frozen network and the data that it looks at.

    Attributes:
      config: of the run.
      data: the splits.
      network: what the leaves belong to.
      leaves: on the mesh.
      weights: where they come from, name and digest; None: nowhere, they are random.
      stages: whose maps are taken.
    """

    config: Config
    data: DataSplits
    predictor: Predictor
    variables: Variables
    weights: dict | None
    stages: tuple[str, ...]

    @functools.cached_property
    def features(self) -> Callable:
        """The compiled forward pass, uint8 pictures to maps."""
        graphdef = self.predictor.flat.graphdef
        config = self.config
        return make_feature_fn(
            graphdef, self.predictor.preprocess, config.train.compute_dtype, self.stages, config.features.pool
        )

    def maps(self, split: Split, name: str, console: Console) -> dict[str, np.ndarray]:
        """The maps of a split by stage, float32 [N, c] or [N, h, w, c], under a progress bar called `name`."""
        with _bar(console, name, len(split)) as advance:
            batch_size, mesh = self.config.train.batch_size, self.predictor.mesh
            maps = extract(self.features, self.variables, split, batch_size, mesh, advance)
        # What comes out of jit is sorted by name.
        return {stage: maps[stage] for stage in self.stages}

    def feature_bytes(self, split: Split) -> int:
        """Size of a split's maps."""
        return 4 * len(split) * sum(map(math.prod, feature_shapes(self.features, self.variables, split).values()))

    @functools.cached_property
    def describe(self) -> dict:
        """Where the maps come from. `backbone_digest` is that of all leaves but the head's, which no map depends on."""
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


def runs(config: Config, mode: str) -> list[Config]:
    """The config itself, or of a sweep over `seed` alone one per seed, each with its own workdir."""
    if set(config.sweep) <= {"seed"}:
        return [cell.config for cell in expand_grid(config)] if config.sweep else [config]
    raise UserError(
        f"--mode={mode} sweeps over seed alone, and this config over {', '.join(config.sweep)}: take one of its runs "
        f"with --workdir={config.workdir}/cells/NAME, or a config without the sweep."
    )


def check(config: Config) -> Experiment:
    """Prepares the run and checks the names in `features`; writes nothing.

    Raises:
      UserError: no such split, stage or probe, or what `prepare` finds.
    """
    wanted = config.features
    for field, names, known in (("splits", wanted.splits, SPLITS), ("probes", wanted.probes, PROBES)):
        if not names:
            raise UserError(f"features.{field} is empty{did_you_mean('', known)}")
        for name in names:
            if name not in known:
                raise UserError(f'features.{field}: there is no "{name}"{did_you_mean(name, known)}')
    prepared = prepare(config)
    model = prepared.predictor.model
    if prepared.predictor.task.spatial:
        raise UserError(f"Features and probes are of classes of pictures; model.head={config.model.head!r} is not.")
    for stage in wanted.stages:
        if stage in model.unused_stages:
            raise UserError(
                f"features.stages: {stage} is not built, because model.out_stage is {config.model.out_stage!r}."
            )
        if stage not in model.stage_names:
            raise UserError(f'features.stages: there is no stage "{stage}"{did_you_mean(stage, model.stage_names)}')
    return prepared


def load_extractor(
    config: Config, console: Console, default: Callable[[Sequence[str]], Sequence[str]]
) -> FeatureExtractor:
    """The network with the best weights of the finished run in the config's workdir, else with its source weights.

    Args:
      config: with weights that exist.
      console: is told which weights they are.
      default: from all stages to those that are taken when `features.stages` is empty.

    Raises:
      UserError: what `check` finds, or a workdir that holds another run.
    """
    prepared, folder = check(config), WorkDir(config.workdir)
    config, network, source = prepared.config, prepared.predictor, prepared.source
    if folder.read("result.json") is not None:
        if config_hash(with_preset_head(folder.read_config())) != config_hash(config):
            raise UserError(
                f"{folder.path} holds a run of another config: take another --workdir, or leave --config out."
            )
        network, leaves, result = finished(config)
        if changed := diff_configs(result["data"], prepared.data.describe()):
            raise UserError(f"The data are not those of the run: {'; '.join(changed)}.")
        weights = {"name": f"workdir:{folder.path}", "sha256": result["parameters_digest"]}
        whose = f"the best model of {folder.path}"
    else:
        leaves = network.mesh.put(prepared.load_variables())
        weights = source.describe() if prepared.strategy.pretrained else None
        whose = weights["name"] if weights else "random weights"
    stages = tuple(dict.fromkeys(config.features.stages or default(network.model.stage_names)))
    side = network.preprocess.size
    console.print(
        f"{config.model.backbone} with {whose}, seed {config.seed}, pictures of {side}×{side}: {', '.join(stages)}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if weights is None:
        console.print("Warning: no weights were loaded; these are features of a random network.", style="yellow")
    return FeatureExtractor(config, prepared.data, network, leaves, weights, stages)


def write(config: Config, console: Console) -> list[Path]:
    """Writes WORKDIR/features/SPLIT.npz for each of `features.splits`, and returns their paths.

    A file has the maps under the stages' names (float32 [N, c], or [N, h, w, c] with pool "none"), `label` (int32 [N];
    not of unlabelled pictures), `picture` (a hash of each picture's content, 32 hexadecimal digits), `classes` (names),
    and `about`, a JSON object with what the maps were made of. It is there whole or not at all.
    """
    trunk = load_extractor(config, console, default=tuple)
    folder = Path(config.workdir) / "features"
    if "unlabelled" in config.features.splits and trunk.data.unlabelled is None:
        raise UserError("features.splits names unlabelled, but data.unlabelled keeps no pictures without labels.")
    written = []
    for name in dict.fromkeys(config.features.splits):
        split, fingerprint = _open(trunk.data, name)
        if config.features.pool == "none":
            size = format_bytes(trunk.feature_bytes(split))
            console.print(f"{name}: {size} will be written", highlight=False, soft_wrap=True)
        maps = trunk.maps(split, name, console)
        about = trunk.describe | {"split": {"name": name, "fingerprint": fingerprint, "size": len(split)}}
        label = {} if name == "unlabelled" else {"label": split.labels}
        path = folder / f"{name}.npz"
        _save(
            path,
            **maps,
            **label,
            picture=np.array([digest.hex() for digest in split.image_hashes]),
            classes=np.array(trunk.predictor.classes),
            about=np.array(json.dumps(about)),
        )
        shapes = ", ".join(f"{stage} {'×'.join(map(str, x.shape[1:]))}" for stage, x in maps.items())
        console.print(f"{path}: {len(split):,} pictures, {shapes}", highlight=False, markup=False, soft_wrap=True)
        if name == "test":
            console.print("The labels of the test split now lie in a file: choose nothing by them.", style="yellow")
        written.append(path)
    return written


def _open(data: DataSplits, name: str) -> tuple[Split, str]:
    """A split by its name, and its fingerprint; unlabelled pictures have labels that mean nothing."""
    if name == "unlabelled":
        images = data.unlabelled.images
        return Split(images, np.zeros(len(images), np.int32)), data.unlabelled.fingerprint
    split = data.test.open() if name == "test" else getattr(data, name)
    return split, split.fingerprint


def _save(path: Path, **arrays: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    with partial.open("wb") as file:
        np.savez(file, **arrays)
    partial.replace(path)


@contextlib.contextmanager
def _bar(console: Console, name: str, total: int) -> Iterator[Callable[[int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, total=total)
        yield lambda pictures: progress.advance(task, pictures)
