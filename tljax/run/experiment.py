"""Everything that a run needs, read and checked; nothing is written."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from flax import nnx

from tljax import data as data_of
from tljax import models, plugins, weights
from tljax.config import Config
from tljax.data import DataSplits
from tljax.errors import UserError
from tljax.inference.predictor import Predictor, head_options
from tljax.losses.pixelwise import IGNORED
from tljax.models import Model
from tljax.models import params as params_lib
from tljax.models.heads import auxiliary
from tljax.models.params import Variables
from tljax.run import teachers as teachers_of
from tljax.run.config_files import load_config_file
from tljax.run.teachers import Teacher
from tljax.strategies import Strategy, build_phases, hint_stage, with_preset_head
from tljax.tasks import task_of
from tljax.train.plan import PhasePlan, SplitSizes, losses_of, plan_phase
from tljax.weights import PRESETS, Preprocess, WeightSource

# Where the source's own classifier goes on living.
SOURCE = "head/source/"


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """A run that is checked and ready; nothing is written yet.

    Attributes:
      config: of the run, with the head that its strategy brings.
      data: the splits.
      network: without values; neither are the source weights read nor random ones drawn yet.
      source: where the weights come from, or None.
      strategy: whether weights are loaded, and the phases.
      observed: the networks that phases look at, by name: "teacher0", ... and "source".
      plans: the phases made concrete.
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
        """What the run is made of besides its config."""
        source = self.source.describe() if self.source else None
        inputs = {"data": self.data.describe(), "weights": source}
        teachers = {name: teacher.describe() for name, teacher in self.networks.items()}
        return inputs | ({"teachers": teachers} if teachers else {}) | ({"files": self.files} if self.files else {})

    @property
    def files(self) -> dict[str, str]:
        """SHA-256 of the file of each strategy and objective of the user's own, by its name in the config."""
        objectives = (name for phase in self.strategy.phases for name, _ in phase.losses)
        names = dict.fromkeys((self.config.strategy.name, *objectives))
        return {name: plugins.plugin_digest(name) for name in names if plugins.is_plugin(name)}

    def load_variables(self) -> Variables:
        """The leaves that training starts from."""
        model = self.predictor.model
        if self.strategy.pretrained:
            # A published norm in front of the classifier is worth having; the classifier itself is for other classes.
            worth = model.head.reusable_params
            weights.load(model, self.source, keep=f"head/(?!{worth}).*", optional=f"head/({worth})")
        if "source_logits" in _needs(self.strategy):
            theirs = self.networks["source"].load()
            own = [path for path in self.predictor.variables() if path.startswith(SOURCE)]
            params_lib.set_variables(model, {path: theirs[path.replace(SOURCE, "head/", 1)] for path in own})
        models.init_missing(model, nnx.Rngs(self.config.seed))
        return self.predictor.variables()

    def source_params(self, leaves: Variables) -> Variables:
        """Those of some of the model's loaded leaves that are the source's, and not new."""
        params = params_lib.flatten_model(self.predictor.model).params if self.strategy.pretrained else {}
        return {path: leaves[path] for path in params if path in leaves and not path.startswith("head/")}


def prepare(config: Config) -> Experiment:
    """Reads and checks everything that a run needs, and writes nothing.

    Raises:
      UserError: anything that would go wrong later for a reason that can be known now.
    """
    config = with_preset_head(config)
    task = task_of(config)
    data = data_of.load(config.data, config.seed, task.name)
    if config.model.num_classes not in (None, len(data.classes)):
        raise UserError(f"model.num_classes={config.model.num_classes}, but the data has {len(data.classes)} classes.")
    if not all(map(len, (data.train, data.valid))) or not data.test.size:
        raise UserError(f"data.name={config.data.name!r} leaves a split empty: {data.describe()}.")
    if data.train.labels.dtype == np.uint8 and not all((x.labels != IGNORED).any() for x in (data.train, data.valid)):
        raise UserError(f"No pixel of a split of data.name={config.data.name!r} counts: all are {IGNORED}.")
    source = _source(config)
    preprocess = source.preprocess if source else PRESETS[config.model.preprocess or "symmetric"]
    size = config.data.image_size or preprocess.size or data.train.images.shape[1]
    channels, here = config.model.in_channels, data.train.images.shape[-1]
    if here not in (1, channels) and (here, channels) != (3, 1):
        raise UserError(f"model.in_channels={channels}, but the pictures have {here}.")
    network = Predictor.build(config, data.classes, dataclasses.replace(preprocess, size=size, channels=channels))
    stages = _stages(network.model)
    strategy = build_phases(config, stages)
    observed = _observed(config, network, strategy, data)
    _add_outputs(network, strategy, observed, stages)
    plans = _plans(config, strategy, network, observed, data)
    return Experiment(config, data, network, source, strategy, observed, plans)


def with_hparams(prepared: Experiment, config: Config) -> Experiment:
    """A run that differs from a prepared one in numbers alone; nothing is read or built again."""
    config = with_preset_head(config)
    network = dataclasses.replace(prepared.predictor, config=config)
    strategy = build_phases(config, _stages(network.model))
    data = dataclasses.replace(prepared.data, test=prepared.data.test.fresh())
    plans = _plans(config, strategy, network, prepared.networks, data)
    return dataclasses.replace(prepared, config=config, data=data, predictor=network, strategy=strategy, plans=plans)


def _stages(model: Model) -> list[str]:
    """The stages that have leaves."""
    params = params_lib.flatten_model(model).params
    return [s for s in model.stage_names if any(p.startswith(f"{s}/") for p in params)]


def _plans(
    config: Config, strategy: Strategy, network: Predictor, observed: dict[str, Teacher], data: DataSplits
) -> list[PhasePlan]:
    prior = _prior(data)
    pictures = SplitSizes(len(data.train), len(data.valid), data.train.images.shape[1:])
    theirs, plans = {name: params_lib.variables(teacher.model) for name, teacher in observed.items()}, []
    for phase in strategy.phases:
        seen = teachers_of.networks_for_phase(observed, _needs_of(phase), network.model, config.strategy.stage_pairs)
        plans.append(plan_phase(config, phase, network.model, pictures, network.preprocess, seen, theirs, prior))
    return plans


def _prior(data: DataSplits) -> np.ndarray:
    """Frequencies of the classes among what is labelled: pictures, pixels or boxes."""
    labels = data.train.labels.ravel()
    counted = np.bincount(labels[(labels >= 0) & (labels < len(data.classes))], minlength=len(data.classes))
    return counted / max(1, counted.sum())


def _source(config: Config) -> WeightSource | None:
    if (name := config.model.weights) is None:
        return None
    if name.startswith("recipe:"):  # not made yet: enough to plan with
        teacher = _to_be_made(name)
        source = WeightSource(name, Path(name), teacher.digest, teacher.preprocess)
    else:
        source = weights.resolve_weights(name, config.model.preprocess)
    if source.backbone not in (None, config.model.backbone):
        raise UserError(f"{source.name} fits model.backbone={source.backbone!r}, not {config.model.backbone!r}.")
    if source.preprocess is None:
        raise UserError(
            f"Nobody knows what {name} was trained on: set model.preprocess to one of {', '.join(PRESETS)}."
        )
    return source


def _to_be_made(source: str) -> Teacher:
    """A recipe's network before it is trained: enough to plan with."""
    prepared = prepare(load_config_file(source.removeprefix("recipe:")))
    made, config = prepared.predictor, prepared.config

    def read() -> Variables:
        raise UserError(f"{source} is not trained yet.")

    dtype, classes = config.train.compute_dtype, len(made.classes)
    head = head_options(config.model) | {"head": config.model.head}
    return Teacher(source, made.model, made.preprocess, dtype, classes, made.classes, head, made.task, "", read)


def _find(source: str, preprocess: str | None, like: Preprocess) -> Teacher:
    made = not source.startswith("recipe:")
    return teachers_of.find_teacher(source, preprocess, like) if made else _to_be_made(source)


def _observed(config: Config, network: Predictor, strategy: Strategy, data: DataSplits) -> dict[str, Teacher]:
    """The networks that the strategy's phases look at; raises where they, or unlabelled pictures, are missing."""
    needs, name = _needs(strategy), config.strategy.name
    if needs & {"weak", "strong"} and data.unlabelled is None:
        raise UserError(
            f"strategy.name={name!r} learns from unlabelled pictures: set data.unlabelled (-1: all there are)."
        )
    found = {}
    if "teachers" in needs:
        if not config.strategy.teachers:
            raise UserError(f"strategy.name={name!r} learns from teachers: set strategy.teachers.")
        for i, teacher in enumerate(config.strategy.teachers):
            found[f"teacher{i}"] = _find(teacher, None, network.preprocess)
    if needs & {"source_maps", "source_logits"}:
        if not strategy.pretrained:
            raise UserError(f"strategy.name={name!r} looks at the source network, but model.weights is not set.")
        source = _find(config.model.weights, config.model.preprocess, network.preprocess)
        found["source"] = dataclasses.replace(source, preprocess=network.preprocess)
    for key, teacher in found.items():
        wanted = "source_logits" if key == "source" else "teacher_logits"
        if wanted in needs and not teacher.classes:
            raise UserError(f"{teacher.name} has no classifier, and strategy.name={name!r} needs its outputs.")
        if wanted == "teacher_logits" in needs and teacher.task is not network.task:
            raise UserError(f"{teacher.name} was made for {teacher.task.name}, and cannot teach {network.task.name}.")
        if wanted == "teacher_logits" in needs and teacher.classes != len(data.classes):
            raise UserError(
                f"{teacher.name} tells {teacher.classes} classes apart, but the data has {len(data.classes)}."
            )
        if wanted == "teacher_logits" in needs and teacher.names not in ((), data.classes):
            raise UserError(
                f"{teacher.name} tells {', '.join(teacher.names)} apart, but the data has {', '.join(data.classes)}."
            )
    return found


def _add_outputs(network: Predictor, strategy: Strategy, observed: dict[str, Teacher], stages: list[str]) -> None:
    """The further outputs that the strategy's objectives ask for, added to the model."""
    needs, model, size = _needs(strategy), network.model, network.preprocess.size
    dtype = np.dtype(network.config.train.compute_dtype)
    if "source_output" in needs:
        source, head = observed.get("source") if "source_logits" in needs else None, network.config.model.head
        classes, options = len(network.classes), {}
        if source is not None:
            classes, options = source.classes, dict(source.head)
            head = options.pop("head")
        auxiliary.add_source_head(model, classes, size, options, dtype, head)
        if source is not None:
            _check_classifier(model, source)
    if "hints" in needs:
        if len(network.config.strategy.teachers) > 1:
            raise UserError("Hints come from one teacher: give one in strategy.teachers.")
        teacher, stage = observed["teacher0"].model, hint_stage(network.config.strategy, stages)
        theirs = dict(teachers_of.match_stages(model, teacher, network.config.strategy.stage_pairs)).get(stage)
        if theirs is None:
            raise UserError(
                f"No stage of {network.config.strategy.teachers[0]} goes with {stage}: set strategy.stage_pairs."
            )
        auxiliary.add_hint(model, stage, teacher.feature_info()[theirs].channels, dtype)


def _check_classifier(model: Model, source: Teacher) -> None:
    """Raises where the source's classifier does not fit the student's last map."""
    theirs = params_lib.variables(source.model)
    for path, leaf in params_lib.variables(model).items():
        was = theirs.get(path.replace(SOURCE, "head/", 1), leaf)
        if path.startswith(SOURCE) and was.shape != leaf.shape:
            raise UserError(
                f"The classifier of {source.name} does not fit the run's last map: its {path.removeprefix(SOURCE)} is "
                f"{was.shape}, not {leaf.shape}; leave model.out_stage and data.image_size as the source has them."
            )


def _needs(strategy: Strategy) -> frozenset[str]:
    return frozenset().union(*(_needs_of(phase) for phase in strategy.phases))


def _needs_of(phase) -> frozenset[str]:
    return frozenset().union(*(term.requires for term in losses_of(phase)))
