"""Networks that a run looks at: teachers, and the source network with its own classifier."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

from tljax import models, weights
from tljax.errors import UserError, did_you_mean
from tljax.features.frozen_network import FrozenNetwork
from tljax.inference.predictor import build_model
from tljax.inference.predictor import head_options as asked_head
from tljax.models import Model
from tljax.models import params as params_lib
from tljax.models.heads.auxiliary import TRAIN_ONLY_OUTPUTS
from tljax.models.params import Variables
from tljax.storage.run_files import read_config, read_json
from tljax.tasks import Task, default_task, task_of
from tljax.weights import Preprocess
from tljax.weights.detect import detect_backbone, head_options
from tljax.weights.layouts import detect_layout, layouts


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """A network that was found, its weights not read yet.

    Attributes:
      name: as the config gave it.
      model: abstract.
      preprocess: of its weights, at its own input size.
      dtype: of its computation.
      classes: outputs of its classifier; 0: it has none.
      names: of these classes; empty where nobody has said.
      head: `head`, which it is, and its options that are not as the network was published.
      task: what it was trained for.
      digest: of its weights.
      read: reads its leaves.
    """

    name: str
    model: Model
    preprocess: Preprocess
    dtype: str
    classes: int
    names: tuple[str, ...]
    head: Mapping[str, Any]
    task: Task
    digest: str
    load: Callable[[], Variables]

    def describe(self) -> dict[str, str]:
        """Name and digest, for result.json."""
        return {"name": self.name, "sha256": self.digest}


def find_teacher(source: str, preprocess: str | None, like: Preprocess) -> Teacher:
    """Finds a network by what `model.weights` takes.

    Args:
      source: a finished run, which brings its own head, or weights of a known network.
      preprocess: for files of which nobody knows it.
      like: of the run; side and channels of the input come from it where the source does not say.

    Raises:
      UserError: not there, or nobody knows what it wants to be fed.
    """
    found = weights.resolve_weights(source, preprocess)
    if found.path.is_dir():
        return _run(source, found)
    if found.preprocess is None:
        raise UserError(f"Nobody knows what {source} was trained on: only weights of which that is known can teach.")
    with weights.open_weights(found) as tensors:
        backbone = found.backbone or detect_backbone(tensors).backbone
        family, variant = models.get_variant(backbone)
        told = head_options(tensors, layouts(family, variant)[detect_layout(tensors, family, variant)])
    classes, told["head"] = told.pop("num_classes"), told.get("head", "classifier")
    head = {k: v for k, v in told.items() if k != "auxiliary"}
    fed = dataclasses.replace(found.preprocess, size=found.preprocess.size or like.size, channels=like.channels)
    make = functools.partial(
        models.create_model,
        backbone,
        num_classes=classes,
        image_size=fed.size,
        in_channels=fed.channels,
        rngs=None,
        **head,
    )
    task = default_task(head["head"])
    return _teacher(source, found, make, fed, "float32", classes, (), head, task)


def _run(source: str, found: weights.WeightSource) -> Teacher:
    config = read_config(found.path / "config.json")
    names = tuple(read_json(found.path / "result.json")["data"]["classes"])
    make = functools.partial(build_model, config, len(names), found.preprocess)
    options = asked_head(config.model) | {"head": config.model.head}
    precision, task = config.train.compute_dtype, task_of(config)
    return _teacher(source, found, make, found.preprocess, precision, len(names), names, options, task)


def _teacher(source, found, make: Callable[[], Model], preprocess, dtype, classes, names, head, task) -> Teacher:
    def read() -> Variables:
        filled = make()
        # Further outputs, for its own training, teach nothing.
        weights.load(filled, found, optional=("head/aux.*", TRAIN_ONLY_OUTPUTS))
        return params_lib.variables(filled)

    return Teacher(source, make(), preprocess, dtype, classes, names, head, task, found.sha256, read)


def networks_for_phase(
    found: Mapping[str, Teacher], needs: Set[str], student: Model, chosen: Sequence[tuple[str, str]]
) -> list[FrozenNetwork]:
    """What a phase looks at.

    Args:
      found: the run's teachers, and its source as "source", by name.
      needs: of the phase's objectives.
      student: the model that learns.
      chosen: pairs of stages of student and teacher; empty: `pairs` finds them.
    """
    observed = []
    for name, teacher in found.items():
        kind = "source" if name == "source" else "teacher"
        logits, maps = f"{kind}_logits" in needs, ()
        if f"{kind}_maps" in needs:
            # The source has the student's own stages, in the student's own sizes.
            own = [(stage, stage) for stage in student.stage_names]
            maps = own if kind == "source" else match_stages(student, teacher.model, chosen)
        if logits or maps:
            graphdef = params_lib.flatten_model(teacher.model).graphdef
            observed.append(FrozenNetwork(name, graphdef, teacher.preprocess, teacher.dtype, logits, tuple(maps)))
    return observed


def match_stages(student: Model, teacher: Model, chosen: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Stages of student and teacher whose maps are compared: the last of each stride that both have, or `chosen`.

    Raises:
      UserError: a stage that one of them does not have, or no stride that both have.
    """
    for ours, theirs in chosen:
        for stage, model in ((ours, student), (theirs, teacher)):
            if stage not in model.stage_names:
                raise UserError(
                    f'strategy.stage_pairs: there is no stage "{stage}"{did_you_mean(stage, model.stage_names)}'
                )
    if chosen:
        return list(chosen)
    ours, theirs = ({level.stride: name for name, level in m.feature_info().items()} for m in (student, teacher))
    if not (found := [(ours[stride], theirs[stride]) for stride in ours if stride in theirs]):
        raise UserError("Student and teacher have no stride in common: set strategy.stage_pairs.")
    return found
