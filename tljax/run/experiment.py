"""Everything that a run needs, read and checked; nothing is written."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from flax import nnx

from tljax import data as data_lib
from tljax import models, plugins, weights
from tljax.config import Config
from tljax.data import DataSplits
from tljax.errors import UserError
from tljax.inference.predictor import Predictor, build_model, head_options
from tljax.losses.pixelwise import IGNORED
from tljax.models import Model
from tljax.models import params as params_lib
from tljax.models.heads import auxiliary
from tljax.models.params import Variables
from tljax.run.config_files import load_config_file
from tljax.run.teachers import Teacher, check_classes, find_teacher, match_stages, networks_for_phase
from tljax.strategies import Strategy, build_phases, hint_stage, with_preset_head
from tljax.tasks import task_of
from tljax.train.plan import PhasePlan, SplitSizes, losses_of, plan_phase
from tljax.weights import PRESETS, Preprocess, WeightSource

# Where the classifier of the source network is in the model.
SOURCE = "head/source/"


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """A run that is checked and ready; nothing is written yet.

    Attributes:
      config: of the run, with the head that its strategy needs.
      data: the splits.
      predictor: the model, abstract: source weights are not read, and nothing is initialized.
      source: where the pretrained weights come from, or None.
      strategy: whether weights are loaded, and the phases.
      networks: that phases read, by name: "teacher0", ... and "source".
      plans: of the phases.
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
        config, phases = self.config, self.strategy.phases
        names = [config.strategy.name, *(name for phase in phases for name, _ in phase.losses)]
        names += [plan.optim.name for plan in self.plans]
        return {name: plugins.plugin_hash(name) for name in dict.fromkeys(names) if plugins.is_plugin(name)}

    def load_variables(self) -> Variables:
        """Return the variables that training starts from: pretrained, and initialized where there are none."""
        model = self.predictor.model
        if self.strategy.pretrained:
            # A published norm before the classifier is reused; the classifier itself is for other classes.
            reusable = model.head.reusable_params
            weights.load(model, self.source, keep=f"head/(?!{reusable}).*", optional=f"head/({reusable})")
        if "source_logits" in _requires(self.strategy):
            source = self.networks["source"].load()
            paths = [path for path in self.predictor.flat.variables if path.startswith(SOURCE)]
            params_lib.set_variables(model, {path: source[path.replace(SOURCE, "head/", 1)] for path in paths})
        models.init_missing(model, nnx.Rngs(self.config.seed))
        return params_lib.flatten_model(model).variables

    def source_params(self, variables: Variables) -> Variables:
        """Return those of the loaded variables that are pretrained parameters, and not new."""
        params = self.predictor.flat.params if self.strategy.pretrained else {}
        return {path: variables[path] for path in params if path in variables and not path.startswith("head/")}


def prepare(config: Config) -> Experiment:
    """Read and check everything that a run needs; write nothing.

    Raises:
      UserError: anything that would fail later for a reason that can be known now.
    """
    config = with_preset_head(config)
    data = _load_data(config)
    source = _find_source(config)
    preprocess = _input_preprocess(config, source, data)
    model = build_model(config, len(data.classes), preprocess)
    strategy = build_phases(config, model.stages_with_params)
    networks = _find_networks(config, strategy, data, preprocess)
    _add_outputs(model, config, strategy, networks, preprocess, len(data.classes))
    predictor = Predictor.of_model(config, model, data.classes, preprocess)
    return Experiment(config, data, predictor, source, strategy, networks, _plans(predictor, strategy, networks, data))


def with_hparams(experiment: Experiment, config: Config) -> Experiment:
    """Return a run that differs from a prepared one in numbers alone; nothing is read or built again."""
    config = with_preset_head(config)
    predictor = dataclasses.replace(experiment.predictor, config=config)
    strategy = build_phases(config, predictor.model.stages_with_params)
    data = dataclasses.replace(experiment.data, test=experiment.data.test.fresh())
    plans = _plans(predictor, strategy, experiment.networks, data)
    return dataclasses.replace(
        experiment, config=config, data=data, predictor=predictor, strategy=strategy, plans=plans
    )


def _load_data(config: Config) -> DataSplits:
    data = data_lib.load(config.data, config.seed, task_of(config).name)
    if config.model.num_classes not in (None, len(data.classes)):
        raise UserError(f"model.num_classes={config.model.num_classes}, but the data has {len(data.classes)} classes.")
    if not all(map(len, (data.train, data.valid))) or not data.test.size:
        raise UserError(f"data.name={config.data.name!r} leaves a split empty: {data.describe()}.")
    if data.train.labels.dtype == np.uint8 and not all((x.labels != IGNORED).any() for x in (data.train, data.valid)):
        raise UserError(f"In a split of data.name={config.data.name!r} every pixel is ignored ({IGNORED}).")
    channels, in_channels = data.train.images.shape[-1], config.model.in_channels
    if channels not in (1, in_channels) and (channels, in_channels) != (3, 1):
        raise UserError(f"model.in_channels={in_channels}, but the images have {channels}.")
    return data


def _find_source(config: Config) -> WeightSource | None:
    if (name := config.model.weights) is None:
        return None
    if name.startswith("recipe:"):  # not trained yet: enough to plan with
        teacher = _untrained_network(name)
        source = WeightSource(name, Path(name), teacher.digest, teacher.preprocess)
    else:
        source = weights.resolve_weights(name, config.model.preprocess)
    if source.backbone not in (None, config.model.backbone):
        raise UserError(f"{source.name} fits model.backbone={source.backbone!r}, not {config.model.backbone!r}.")
    if source.preprocess is None:
        raise UserError(f"The preprocessing of {name} is unknown: set model.preprocess to one of {', '.join(PRESETS)}.")
    return source


def _input_preprocess(config: Config, source: WeightSource | None, data: DataSplits) -> Preprocess:
    preprocess = source.preprocess if source else PRESETS[config.model.preprocess or "symmetric"]
    size = config.data.image_size or preprocess.size or data.train.images.shape[1]
    return dataclasses.replace(preprocess, size=size, channels=config.model.in_channels)


def _untrained_network(source: str) -> Teacher:
    """Return a recipe's network before it is trained: enough to plan with."""
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


def _find_network(source: str, preprocess: str | None, like: Preprocess) -> Teacher:
    return _untrained_network(source) if source.startswith("recipe:") else find_teacher(source, preprocess, like)


def _find_networks(config: Config, strategy: Strategy, data: DataSplits, preprocess: Preprocess) -> dict[str, Teacher]:
    """Return the networks that the phases read; raises UserError if they, or unlabelled images, are missing."""
    requires, name = _requires(strategy), f"strategy.name={config.strategy.name!r}"
    if requires & {"weak", "strong"} and data.unlabelled is None:
        raise UserError(f"{name} trains on unlabelled images: set data.unlabelled (-1: all there are).")
    networks = {}
    if "teachers" in requires:
        if not config.strategy.teachers:
            raise UserError(f"{name} needs teachers: set strategy.teachers.")
        for i, teacher in enumerate(config.strategy.teachers):
            networks[f"teacher{i}"] = _find_network(teacher, None, preprocess)
    if requires & {"source_maps", "source_logits"}:
        if not strategy.pretrained:
            raise UserError(f"{name} reads the source network, but model.weights is not set.")
        source = _find_network(config.model.weights, config.model.preprocess, preprocess)
        networks["source"] = dataclasses.replace(source, preprocess=preprocess)
    for key, teacher in networks.items():
        needed = "source_logits" if key == "source" else "teacher_logits"
        if needed in requires and not teacher.num_classes:
            raise UserError(f"{teacher.name} has no classifier, and {name} needs its outputs.")
        if key != "source" and needed in requires:
            check_classes(teacher, task_of(config), data.classes)
    return networks


def _add_outputs(
    model: Model,
    config: Config,
    strategy: Strategy,
    networks: dict[str, Teacher],
    preprocess: Preprocess,
    num_classes: int,
) -> None:
    """Add the auxiliary outputs that the losses need to the model."""
    requires, dtype = _requires(strategy), np.dtype(config.train.compute_dtype)
    if "source_output" in requires:
        if "source_logits" in requires:
            source = networks["source"]
            options = dict(source.head)
            head = options.pop("head")
            auxiliary.add_source_head(model, source.num_classes, preprocess.size, options, dtype, head)
            _check_classifier(model, source)
        else:
            auxiliary.add_source_head(model, num_classes, preprocess.size, {}, dtype, config.model.head)
    if "hints" in requires:
        if len(config.strategy.teachers) > 1:
            raise UserError("Hints come from one teacher: give one in strategy.teachers.")
        teacher, stage = networks["teacher0"].model, hint_stage(config.strategy, model.stages_with_params)
        matched = dict(match_stages(model, teacher, config.strategy.stage_pairs)).get(stage)
        if matched is None:
            raise UserError(f"No stage of {config.strategy.teachers[0]} matches {stage}: set strategy.stage_pairs.")
        auxiliary.add_hint(model, stage, teacher.feature_info()[matched].channels, dtype)


def _check_classifier(model: Model, source: Teacher) -> None:
    """Raise UserError if the classifier of the source does not fit the last features of the student."""
    for path, value in params_lib.variables(model).items():
        expected = source.flat.variables.get(path.replace(SOURCE, "head/", 1), value)
        if path.startswith(SOURCE) and expected.shape != value.shape:
            raise UserError(
                f"The classifier of {source.name} does not fit the run's last map: its {path.removeprefix(SOURCE)} is "
                f"{expected.shape}, not {value.shape}; leave model.out_stage and data.image_size as the source has "
                "them."
            )


def _plans(predictor: Predictor, strategy: Strategy, teachers: dict[str, Teacher], data: DataSplits) -> list[PhasePlan]:
    sizes = SplitSizes(len(data.train), len(data.valid), data.train.images.shape[1:])
    stage_pairs, prior = predictor.config.strategy.stage_pairs, _class_frequencies(data)
    plans = []
    for phase in strategy.phases:
        requires = _requires_of(phase)
        networks = networks_for_phase(teachers, requires, predictor.model, stage_pairs, sizes.image_shape)
        plans.append(plan_phase(phase, predictor, sizes, networks, prior))
    return plans


def _class_frequencies(data: DataSplits) -> np.ndarray:
    """Return the frequencies [classes] among the labelled images, pixels or boxes."""
    labels = data.train.labels.ravel()
    counts = np.bincount(labels[(labels >= 0) & (labels < len(data.classes))], minlength=len(data.classes))
    return counts / max(1, counts.sum())


def _requires(strategy: Strategy) -> frozenset[str]:
    return frozenset().union(*(_requires_of(phase) for phase in strategy.phases))


def _requires_of(phase) -> frozenset[str]:
    return frozenset().union(*(loss.requires for loss in losses_of(phase)))
