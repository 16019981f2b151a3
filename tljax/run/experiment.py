"""Read and check everything that a run needs, before anything is written."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from tljax import data as data_lib
from tljax import models, plugins, weights
from tljax.augment.ops import apply_ops
from tljax.config import Config
from tljax.data import DataSplits
from tljax.data.sources import registry
from tljax.errors import UserError
from tljax.inference.predictor import Predictor, build_model, head_options
from tljax.losses.pixelwise import IGNORED
from tljax.models import params as params_lib
from tljax.models.params import Variables
from tljax.run.auxiliary_outputs import SOURCE, add_outputs
from tljax.run.config_files import load_config_file
from tljax.run.teachers import Teacher, find_networks, networks_for_phase
from tljax.strategies import Strategy, build_phases, with_preset_head
from tljax.tasks import metrics_of, task_of
from tljax.train.optimizer import make_optimizer
from tljax.train.plan import PhasePlan, SplitSizes, plan_phase
from tljax.weights import PRESETS, Preprocess, WeightSource


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """A run that is checked and ready; nothing is written yet.

    Attributes:
      config: of the run, with the head that its strategy needs.
      data: the splits.
      predictor: the abstract model, without values, with its preprocessing and devices.
      source: the pretrained weights, not loaded yet, or None.
      strategy: whether pretrained weights are loaded, and the phases.
      networks: frozen networks that phases read, by name: "teacher0", ... and "source".
      plans: one per phase.
    """

    config: Config
    data: DataSplits
    predictor: Predictor
    source: WeightSource | None
    strategy: Strategy
    networks: dict[str, Teacher]
    plans: list[PhasePlan]

    @property
    def inputs(self) -> dict:
        """What the run depends on besides its config, for inputs.json."""
        inputs = {"data": self.data.describe(), "weights": self.source.describe() if self.source else None}
        if self.networks:
            inputs["teachers"] = {name: teacher.describe() for name, teacher in self.networks.items()}
        return inputs | ({"files": self.files} if self.files else {})

    @property
    def files(self) -> dict[str, str]:
        """SHA-256 of the file of everything that the config names as FILE.py:NAME."""
        config = self.config
        names = [config.strategy.name, *(name for phase in self.strategy.phases for name, _ in phase.losses)]
        names += [plan.optim.name for plan in self.plans]
        names += [config.data.name, config.model.backbone, config.model.head, config.task or "", *config.metrics]
        names += [name for name, _ in config.augment.ops]
        return plugins.plugin_hashes(names)

    def load_variables(self) -> Variables:
        """Load the pretrained variables, initialize all others, and return {path: array}."""
        model = self.predictor.model
        if self.strategy.pretrained:
            # Of a pretrained head, only a norm before the classifier is reused: the classifier is for other classes.
            assert self.source is not None
            reusable = model.head.reusable_params
            weights.load(model, self.source, keep=f"head/(?!{reusable}).*", optional=f"head/({reusable})")
        if "source_logits" in self.strategy.requires:
            source = self.networks["source"].load()
            paths = [path for path in self.predictor.flat.variables if path.startswith(SOURCE)]
            params_lib.set_variables(model, {path: source[path.replace(SOURCE, "head/", 1)] for path in paths})
        models.init_missing(model, nnx.Rngs(self.config.seed))
        return params_lib.flatten_model(model).variables

    def source_params(self, variables: Variables) -> Variables:
        """Return the pretrained parameters among `variables`: all but the head's."""
        params = self.predictor.flat.params if self.strategy.pretrained else {}
        return {path: variables[path] for path in params if path in variables and not path.startswith("head/")}


def prepare(config: Config) -> Experiment:
    """Read and check everything that a run needs; write nothing.

    Raises:
      UserError: a missing file, or fields, data, weights and losses that do not fit each other.
    """
    config = with_preset_head(config)
    task = task_of(config)
    metrics_of(config)  # an unknown metric is an error before the data are read
    raw_data = registry.load_source(config.data, task.labels)
    source = _find_source(config)
    preprocess = source.preprocess if source else PRESETS[config.model.preprocess or "symmetric"]
    assert preprocess is not None  # `_find_source` checks it
    # Image files of any size are decoded to what the weights expect.
    data = data_lib.prepare_splits(raw_data, config.data, config.seed, preprocess)
    _check_data(config, data)
    preprocess = _input_preprocess(config, preprocess, data)
    _check_ops(config, data, preprocess)
    model = build_model(config, len(data.classes), preprocess)
    strategy = build_phases(config, model.stages_with_params)
    if strategy.requires & {"weak", "strong"} and data.unlabelled is None:
        name = config.strategy.name
        raise UserError(f"strategy.name={name!r} trains on unlabelled images: set data.unlabelled (-1: all there are).")
    networks = find_networks(config, strategy, task, data.classes, preprocess, _untrained_network)
    add_outputs(model, config, strategy.requires, networks, preprocess, len(data.classes))
    predictor = Predictor.of_model(config, model, data.classes, preprocess)
    return Experiment(config, data, predictor, source, strategy, networks, _plans(predictor, strategy, networks, data))


def with_hparams(experiment: Experiment, config: Config) -> Experiment:
    """Return a prepared run with a config that differs in numbers alone; data and model are not read or built again."""
    config = with_preset_head(config)
    predictor = dataclasses.replace(experiment.predictor, config=config)
    strategy = build_phases(config, predictor.model.stages_with_params)
    data = dataclasses.replace(experiment.data, test=experiment.data.test.fresh())
    plans = _plans(predictor, strategy, experiment.networks, data)
    return dataclasses.replace(
        experiment, config=config, data=data, predictor=predictor, strategy=strategy, plans=plans
    )


def _check_data(config: Config, data: DataSplits) -> None:
    """Raise UserError if a split is empty, or the data do not fit the config of the model."""
    if config.model.num_classes not in (None, len(data.classes)):
        raise UserError(f"model.num_classes={config.model.num_classes}, but the data has {len(data.classes)} classes.")
    if not all(map(len, (data.train, data.valid))) or not data.test.size:
        raise UserError(f"data.name={config.data.name!r} leaves a split empty: {data.describe()}.")
    if data.train.labels.dtype == np.uint8 and not all((x.labels != IGNORED).any() for x in (data.train, data.valid)):
        raise UserError(f"In a split of data.name={config.data.name!r} every pixel is ignored ({IGNORED}).")
    channels, in_channels = data.train.images.shape[-1], config.model.in_channels
    if channels not in (1, in_channels) and (channels, in_channels) != (3, 1):
        raise UserError(f"model.in_channels={in_channels}, but the images have {channels}.")


def _check_ops(config: Config, data: DataSplits, preprocess: Preprocess) -> None:
    """Raise UserError if a custom augmentation does not return a batch like the one it got."""
    if config.augment.ops:
        arrays = {"image": data.train.images, **data.train.targets(preprocess.side)}
        batch = {name: jax.ShapeDtypeStruct((2, *x.shape[1:]), x.dtype) for name, x in arrays.items()}
        jax.eval_shape(functools.partial(apply_ops, config.augment.ops), jax.random.key(0), batch)


def _find_source(config: Config) -> WeightSource | None:
    if (name := config.model.weights) is None:
        return None
    if name.startswith("recipe:"):  # not trained yet: its shapes are enough for --mode=plan
        teacher = _untrained_network(name)
        source = WeightSource(name, Path(name), teacher.digest, teacher.preprocess)
    else:
        source = weights.resolve_weights(name, config.model.preprocess)
    if source.backbone not in (None, config.model.backbone):
        raise UserError(f"{source.name} fits model.backbone={source.backbone!r}, not {config.model.backbone!r}.")
    if source.preprocess is None:
        raise UserError(f"The preprocessing of {name} is unknown: set model.preprocess to one of {', '.join(PRESETS)}.")
    return source


def _input_preprocess(config: Config, preprocess: Preprocess, data: DataSplits) -> Preprocess:
    """Return the preprocessing of the weights for the input of the run."""
    size = config.data.image_size or preprocess.size or data.train.images.shape[1]
    return dataclasses.replace(
        preprocess, size=size, channels=config.model.in_channels, center_crop=data.resize == "crop"
    )


def _untrained_network(source: str) -> Teacher:
    """Return the network of a recipe that is not trained yet: its shapes are enough for --mode=plan."""
    experiment = prepare(load_config_file(source.removeprefix("recipe:")))
    predictor, config = experiment.predictor, experiment.config

    def load() -> Variables:
        raise UserError(f"{source} is not trained yet.")

    return Teacher(
        name=source,
        model=predictor.model,
        preprocess=predictor.preprocess,
        dtype=config.train.compute_dtype,
        num_classes=len(predictor.classes),
        class_names=predictor.classes,
        head=head_options(config.model) | {"head": config.model.head},
        task=predictor.task,
        digest="",
        load=load,
    )


def _plans(predictor: Predictor, strategy: Strategy, teachers: dict[str, Teacher], data: DataSplits) -> list[PhasePlan]:
    sizes = SplitSizes(len(data.train), len(data.valid), data.train.images.shape[1:])
    stage_pairs = predictor.config.strategy.stage_pairs
    prior = _class_frequencies(data)
    plans = []
    for phase in strategy.phases:
        networks = networks_for_phase(teachers, phase, predictor.model, stage_pairs, sizes.image_shape)
        plan = plan_phase(phase, predictor, sizes, networks, prior)
        # Errors of a custom optimizer are raised here, before anything is written.
        make_optimizer(plan.spec.optimizer, plan.hparams | {"lr": 0.0}, dict(plan.spec.param_groups))
        plans.append(plan)
    return plans


def _class_frequencies(data: DataSplits) -> np.ndarray:
    """Return the frequencies of the classes among the labelled images, pixels or boxes, [classes].

    They are uniform for the targets of a custom task.
    """
    if data.train.labels.ndim == 2 and data.train.boxes is None:
        return np.full(len(data.classes), 1 / len(data.classes))
    labels = data.train.labels.ravel()
    counts = np.bincount(labels[(labels >= 0) & (labels < len(data.classes))], minlength=len(data.classes))
    return counts / max(1, counts.sum())
