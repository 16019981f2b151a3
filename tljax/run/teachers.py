"""Frozen networks that a run reads: teachers, and the source network with its classifier."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tljax import models, weights
from tljax.config import Config, Phase
from tljax.errors import UserError, did_you_mean
from tljax.features.frozen_network import FrozenNetwork
from tljax.inference.predictor import build_model
from tljax.inference.predictor import head_options as config_head_options
from tljax.losses import requirements_of
from tljax.models import Model
from tljax.models import params as params_lib
from tljax.models.heads.auxiliary import TRAIN_ONLY_PARAMS
from tljax.models.params import FlatModel, Variables
from tljax.storage.run_files import read_config, read_json
from tljax.strategies import Strategy
from tljax.tasks import Task, default_task, task_of
from tljax.weights import Preprocess, WeightSource
from tljax.weights.detect import detect_backbone, head_options
from tljax.weights.layouts import detect_layout, layouts


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """A frozen network whose weights are resolved but not loaded.

    Attributes:
      name: as in the config.
      model: abstract, without values.
      preprocess: of its weights, at the network's own input size.
      dtype: of its computation.
      num_classes: outputs of its classifier; 0: it has none.
      class_names: empty if they are unknown.
      head: `head`, its name, and options that differ from the published network.
      task: that it was trained for.
      digest: SHA-256 of its weights.
      load: returns its variables.
    """

    name: str
    model: Model
    preprocess: Preprocess
    dtype: str
    num_classes: int
    class_names: tuple[str, ...]
    head: Mapping[str, Any]
    task: Task
    digest: str
    load: Callable[[], Variables]

    @functools.cached_property
    def flat(self) -> FlatModel:
        """The model as graph definition and flat dicts of shapes."""
        return params_lib.flatten_model(self.model)

    def describe(self) -> dict[str, str]:
        """Return name and digest, for result.json."""
        return {"name": self.name, "sha256": self.digest}


def find_networks(
    config: Config,
    strategy: Strategy,
    task: Task,
    classes: Sequence[str],
    preprocess: Preprocess,
    untrained: Callable[[str], Teacher],
) -> dict[str, Teacher]:
    """Return the networks that the phases of a run read: "teacher0", ... and "source".

    Args:
      config: of the run.
      strategy: of the run.
      task: of the run.
      classes: of the data.
      preprocess: of the pretrained weights, at the input size of the run.
      untrained: returns the network of a recipe that is not trained yet.

    Raises:
      UserError: a network is missing, or its outputs do not fit the run.
    """
    requires = strategy.requires
    name = f"strategy.name={config.strategy.name!r}"

    def find(source: str, preprocess_name: str | None) -> Teacher:
        if source.startswith("recipe:"):
            return untrained(source)
        return find_teacher(source, preprocess_name, preprocess)

    networks = {}
    if "teachers" in requires:
        if not config.strategy.teachers:
            raise UserError(f"{name} needs teachers: set strategy.teachers.")
        networks = {f"teacher{i}": find(teacher, None) for i, teacher in enumerate(config.strategy.teachers)}
    if requires & {"source_maps", "source_logits"}:
        if config.model.weights is None or not strategy.pretrained:
            raise UserError(f"{name} reads the source network, but model.weights is not set.")
        source = find(config.model.weights, config.model.preprocess)
        networks["source"] = dataclasses.replace(source, preprocess=preprocess)
    networks = {key: _with_view(teacher, preprocess) for key, teacher in networks.items()}
    for key, teacher in networks.items():
        logits = "source_logits" if key == "source" else "teacher_logits"
        if logits in requires and not teacher.num_classes:
            raise UserError(f"{teacher.name} has no classifier, and {name} needs its outputs.")
        if key != "source" and logits in requires:
            _check_classes(teacher, task, classes)
    return networks


def _with_view(teacher: Teacher, preprocess: Preprocess) -> Teacher:
    """Return a network that sees the same part of an image as the model."""
    view = {"crop": preprocess.crop, "center_crop": preprocess.center_crop}
    return dataclasses.replace(teacher, preprocess=dataclasses.replace(teacher.preprocess, **view))


def find_teacher(source: str, preprocess: str | None, like: Preprocess) -> Teacher:
    """Return the network of any value of `model.weights` except a recipe.

    Args:
      source: a finished run, or weights of a known network.
      preprocess: name of the preprocessing, for files that do not determine it.
      like: preprocessing of the run, whose input size and channels are used where the source determines none.

    Raises:
      UserError: no such weights, or their preprocessing is unknown.
    """
    weight_source = weights.resolve_weights(source, preprocess)
    if weight_source.path.is_dir():
        return _find_finished_run(source, weight_source)
    if weight_source.preprocess is None:
        raise UserError(f"The preprocessing of {source} is unknown: a teacher needs weights with known preprocessing.")
    with weights.open_weights(weight_source) as tensors:
        backbone = weight_source.backbone or detect_backbone(tensors).backbone
        family, variant = models.get_variant(backbone)
        options = head_options(tensors, layouts(family, variant)[detect_layout(tensors, family, variant)])
    num_classes = options.pop("num_classes")
    head = {"head": "classifier", **{name: value for name, value in options.items() if name != "auxiliary"}}
    size = weight_source.preprocess.size or like.size
    input_preprocess = dataclasses.replace(weight_source.preprocess, size=size, channels=like.channels)
    create = functools.partial(
        models.create_model,
        backbone,
        num_classes=num_classes,
        image_size=input_preprocess.size,
        in_channels=input_preprocess.channels,
        rngs=None,
        **head,
    )
    return Teacher(
        name=source,
        model=create(),
        preprocess=input_preprocess,
        dtype="float32",
        num_classes=num_classes,
        class_names=(),
        head=head,
        task=default_task(head["head"]),
        digest=weight_source.sha256,
        load=functools.partial(_load, create, weight_source),
    )


def _find_finished_run(source: str, weight_source: WeightSource) -> Teacher:
    config = read_config(weight_source.path / "config.json")
    class_names = tuple(read_json(weight_source.path / "result.json")["data"]["classes"])
    assert weight_source.preprocess is not None  # recorded by the run
    create = functools.partial(build_model, config, len(class_names), weight_source.preprocess)
    return Teacher(
        name=source,
        model=create(),
        preprocess=weight_source.preprocess,
        dtype=config.train.compute_dtype,
        num_classes=len(class_names),
        class_names=class_names,
        head=config_head_options(config.model) | {"head": config.model.head},
        task=task_of(config),
        digest=weight_source.sha256,
        load=functools.partial(_load, create, weight_source),
    )


def _load(create: Callable[[], Model], weight_source: WeightSource) -> Variables:
    model = create()
    # Auxiliary outputs exist in training only, so that their weights may be missing or unused.
    weights.load(model, weight_source, optional=("head/aux.*", TRAIN_ONLY_PARAMS))
    return params_lib.flatten_model(model).variables


def _check_classes(teacher: Teacher, task: Task, classes: Sequence[str]) -> None:
    """Raise UserError if a teacher was trained for another task or other classes."""
    if teacher.task.name != task.name:
        raise UserError(f"{teacher.name} was trained for {teacher.task.name}, and cannot teach {task.name}.")
    if teacher.num_classes != len(classes):
        raise UserError(f"{teacher.name} has {teacher.num_classes} classes, but the data has {len(classes)}.")
    if teacher.class_names not in ((), tuple(classes)):
        raise UserError(
            f"{teacher.name} has the classes {', '.join(teacher.class_names)}, but the data has {', '.join(classes)}."
        )


def networks_for_phase(
    teachers: Mapping[str, Teacher],
    phase: Phase,
    student: Model,
    stage_pairs: Sequence[tuple[str, str]],
    image_shape: Sequence[int],
) -> list[FrozenNetwork]:
    """Return the networks that a phase reads.

    Args:
      teachers: {name: network} of the run, the source network as "source".
      phase: of the strategy.
      student: the model that is trained.
      stage_pairs: (student, teacher) stages whose features are compared; empty: chosen by `match_stages`.
      image_shape: [H, W, C] of an image.
    """
    requires = requirements_of(phase)
    networks = []
    for name, teacher in teachers.items():
        kind = "source" if name == "source" else "teacher"
        logits = f"{kind}_logits" in requires
        maps = ()
        if f"{kind}_maps" in requires:
            # The source has the same stages as the student, in the same sizes.
            same = [(stage, stage) for stage in student.stage_names]
            maps = same if kind == "source" else match_stages(student, teacher.model, stage_pairs)
        if logits or maps:
            network = FrozenNetwork(name, teacher.flat.graphdef, teacher.preprocess, teacher.dtype, logits, tuple(maps))
            networks.append(network.with_output_bytes(teacher.flat.variables, image_shape))
    return networks


def match_stages(student: Model, teacher: Model, stage_pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the (student, teacher) stages whose features are compared.

    These are `stage_pairs`, or else the last stages of each stride that both networks have.

    Raises:
      UserError: a stage that one of them does not have, or no stride that both have.
    """
    for pair in stage_pairs:
        for stage, model in zip(pair, (student, teacher), strict=True):
            if stage not in model.stage_names:
                hint = did_you_mean(stage, model.stage_names)
                raise UserError(f'strategy.stage_pairs: there is no stage "{stage}"{hint}')
    if stage_pairs:
        return list(stage_pairs)
    student_stages = {info.stride: name for name, info in student.feature_info().items()}
    teacher_stages = {info.stride: name for name, info in teacher.feature_info().items()}
    matched = [(name, teacher_stages[stride]) for stride, name in student_stages.items() if stride in teacher_stages]
    if not matched:
        raise UserError("Student and teacher have no stride in common: set strategy.stage_pairs.")
    return matched
