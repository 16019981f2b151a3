"""Outputs that losses need beside the head's own, and that a run adds to its model."""

from __future__ import annotations

from collections.abc import Mapping, Set

import numpy as np

from tljax.config import Config
from tljax.errors import UserError
from tljax.models import Model
from tljax.models import params as params_lib
from tljax.models.heads import auxiliary
from tljax.run.teachers import Teacher, match_stages
from tljax.strategies import hint_stage
from tljax.weights import Preprocess

# Where the classifier of the source network is in the model.
SOURCE = "head/source/"


def add_outputs(
    model: Model,
    config: Config,
    requires: Set[str],
    networks: Mapping[str, Teacher],
    preprocess: Preprocess,
    num_classes: int,
) -> None:
    """Add the auxiliary outputs that the losses of a run need to its model.

    Args:
      model: of the run, abstract.
      config: of the run.
      requires: what the losses need, names in `tljax.losses.REQUIREMENTS`.
      networks: the frozen networks of the run, from `find_networks`.
      preprocess: of the pretrained weights, at the input size of the run.
      num_classes: of the data.

    Raises:
      UserError: the classifier of the source does not fit, or no stage of the teacher matches the one with hints.
    """
    dtype = np.dtype(config.train.compute_dtype)
    if "source_output" in requires:
        options = {}
        head = config.model.head
        if "source_logits" in requires:
            num_classes = networks["source"].num_classes
            options = dict(networks["source"].head)
            head = options.pop("head")
        auxiliary.add_source_head(model, num_classes, preprocess.side, options, dtype, head)
        if "source_logits" in requires:
            _check_classifier(model, networks["source"])
    if "hints" in requires:
        if len(config.strategy.teachers) != 1:
            raise UserError("Hints come from one teacher: give one in strategy.teachers.")
        teacher = networks["teacher0"].model
        stage = hint_stage(config.strategy, model.stages_with_params)
        matched = dict(match_stages(model, teacher, config.strategy.stage_pairs)).get(stage)
        if matched is None:
            raise UserError(f"No stage of {config.strategy.teachers[0]} matches {stage}: set strategy.stage_pairs.")
        auxiliary.add_hint(model, stage, teacher.feature_info()[matched].channels, dtype)


def _check_classifier(model: Model, source: Teacher) -> None:
    """Raise UserError if the classifier of the source does not fit the last feature map of the student."""
    for path, value in params_lib.variables(model).items():
        expected = source.flat.variables.get(path.replace(SOURCE, "head/", 1), value)
        if path.startswith(SOURCE) and expected.shape != value.shape:
            raise UserError(
                f"The classifier of {source.name} does not fit the last feature map of this run: its "
                f"{path.removeprefix(SOURCE)} is {expected.shape}, not {value.shape}; set model.out_stage and "
                "data.image_size as in the source."
            )
