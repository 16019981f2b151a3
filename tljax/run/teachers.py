"""Networks that a run reads but does not train: teachers, and the source network with its own classifier."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

from tljax import models, weights
from tljax.errors import UserError, did_you_mean
from tljax.features.frozen_network import FrozenNetwork
from tljax.inference.predictor import build_model
from tljax.inference.predictor import head_options as config_head_options
from tljax.models import Model
from tljax.models import params as params_lib
from tljax.models.heads.auxiliary import TRAIN_ONLY_PARAMS
from tljax.models.params import FlatModel, Variables
from tljax.storage.run_files import read_config, read_json
from tljax.tasks import Task, default_task, task_of
from tljax.weights import Preprocess, WeightSource
from tljax.weights.detect import detect_backbone, head_options
from tljax.weights.layouts import detect_layout, layouts


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """A network whose weights are found but not read yet.

    Attributes:
      name: as the config gives it.
      model: abstract.
      preprocess: of its weights, at its own input size.
      dtype: of its computation.
      num_classes: outputs of its classifier; 0: it has none.
      class_names: empty if they are unknown.
      head: `head`, its name, and options that differ from the published network.
      task: that it was trained for.
      digest: of its weights.
      load: reads its variables.
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


def find_teacher(source: str, preprocess: str | None, like: Preprocess) -> Teacher:
    """Find a network by any value that `model.weights` takes, except a recipe.

    Args:
      source: a finished run, which brings its own head, or weights of a known network.
      preprocess: for files whose preprocessing is unknown.
      like: of the run; side and channels of the input come from it where the source does not say.

    Raises:
      UserError: no such weights, or their preprocessing is unknown.
    """
    found = weights.resolve_weights(source, preprocess)
    if found.path.is_dir():
        return _finished_run(source, found)
    if found.preprocess is None:
        raise UserError(f"The preprocessing of {source} is unknown: a teacher needs weights with known preprocessing.")
    with weights.open_weights(found) as tensors:
        backbone = found.backbone or detect_backbone(tensors).backbone
        family, variant = models.get_variant(backbone)
        options = head_options(tensors, layouts(family, variant)[detect_layout(tensors, family, variant)])
    num_classes = options.pop("num_classes")
    head = {"head": "classifier", **{name: value for name, value in options.items() if name != "auxiliary"}}
    own = dataclasses.replace(found.preprocess, size=found.preprocess.size or like.size, channels=like.channels)
    make = functools.partial(
        models.create_model,
        backbone,
        num_classes=num_classes,
        image_size=own.size,
        in_channels=own.channels,
        rngs=None,
        **head,
    )
    return Teacher(
        name=source,
        model=make(),
        preprocess=own,
        dtype="float32",
        num_classes=num_classes,
        class_names=(),
        head=head,
        task=default_task(head["head"]),
        digest=found.sha256,
        load=functools.partial(_load, make, found),
    )


def _finished_run(source: str, found: WeightSource) -> Teacher:
    config = read_config(found.path / "config.json")
    class_names = tuple(read_json(found.path / "result.json")["data"]["classes"])
    make = functools.partial(build_model, config, len(class_names), found.preprocess)
    return Teacher(
        name=source,
        model=make(),
        preprocess=found.preprocess,
        dtype=config.train.compute_dtype,
        num_classes=len(class_names),
        class_names=class_names,
        head=config_head_options(config.model) | {"head": config.model.head},
        task=task_of(config),
        digest=found.sha256,
        load=functools.partial(_load, make, found),
    )


def _load(make: Callable[[], Model], found: WeightSource) -> Variables:
    model = make()
    # Outputs that exist for its own training only are not read.
    weights.load(model, found, optional=("head/aux.*", TRAIN_ONLY_PARAMS))
    return params_lib.flatten_model(model).variables


def check_classes(teacher: Teacher, task: Task, classes: Sequence[str]) -> None:
    """Raise UserError unless the outputs of a teacher are those of the task and the classes of the data."""
    if teacher.task is not task:
        raise UserError(f"{teacher.name} was trained for {teacher.task.name}, and cannot teach {task.name}.")
    if teacher.num_classes != len(classes):
        raise UserError(f"{teacher.name} has {teacher.num_classes} classes, but the data has {len(classes)}.")
    if teacher.class_names not in ((), tuple(classes)):
        raise UserError(
            f"{teacher.name} has the classes {', '.join(teacher.class_names)}, but the data has {', '.join(classes)}."
        )


def networks_for_phase(
    teachers: Mapping[str, Teacher],
    requires: Set[str],
    student: Model,
    stage_pairs: Sequence[tuple[str, str]],
    image_shape: Sequence[int],
) -> list[FrozenNetwork]:
    """Return the networks that a phase reads.

    Args:
      teachers: of the run, with its source network as "source", by name.
      requires: of the phase's losses.
      student: the model that trains.
      stage_pairs: stages of student and teacher whose features are compared; empty: `match_stages` finds them.
      image_shape: [H, W, C] of an image.
    """
    networks = []
    for name, teacher in teachers.items():
        kind = "source" if name == "source" else "teacher"
        logits, maps = f"{kind}_logits" in requires, ()
        if f"{kind}_maps" in requires:
            # The source has the student's own stages, in the same sizes.
            same = [(stage, stage) for stage in student.stage_names]
            maps = same if kind == "source" else match_stages(student, teacher.model, stage_pairs)
        if logits or maps:
            network = FrozenNetwork(name, teacher.flat.graphdef, teacher.preprocess, teacher.dtype, logits, tuple(maps))
            networks.append(network.with_output_bytes(teacher.flat.variables, image_shape))
    return networks


def match_stages(student: Model, teacher: Model, stage_pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the stages whose features are compared: the last of each stride that both have, or `stage_pairs`.

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
    of_student, of_teacher = (
        {info.stride: name for name, info in model.feature_info().items()} for model in (student, teacher)
    )
    matched = [(of_student[stride], of_teacher[stride]) for stride in of_student if stride in of_teacher]
    if not matched:
        raise UserError("Student and teacher have no stride in common: set strategy.stage_pairs.")
    return matched
