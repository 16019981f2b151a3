"""Loss terms: pure functions that a phase weights and sums. `Loss` documents their arguments."""

from __future__ import annotations

from typing import cast

from tljax import plugins
from tljax.config import Phase
from tljax.errors import UserError, did_you_mean
from tljax.losses.base import REQUIREMENTS, Loss, LossFn, loss
from tljax.losses.detection import detection, detection_centerness, detection_focal, detection_giou, source_detection
from tljax.losses.distillation import attention_transfer, delta, distillation, hints, lwf
from tljax.losses.regularization import l2, l2_sp
from tljax.losses.segmentation import boundary_cross_entropy, dice, focal, lovasz
from tljax.losses.semi_supervised import fixmatch, mean_teacher, pseudo_label
from tljax.losses.supervised import aux_cross_entropy, cross_entropy, source_cross_entropy

__all__ = ["LOSSES", "REQUIREMENTS", "Loss", "get_loss", "loss", "losses_of", "requirements_of"]

LOSSES: dict[str, Loss] = {
    term.name: term
    for term in (
        *(cross_entropy, aux_cross_entropy, source_cross_entropy),
        *(dice, focal, lovasz, boundary_cross_entropy),
        *(detection, detection_focal, detection_giou, detection_centerness, source_detection),
        *(distillation, attention_transfer, hints, delta, lwf),
        *(l2, l2_sp),
        *(pseudo_label, fixmatch, mean_teacher),
    )
}


def get_loss(name: str) -> Loss:
    """Return the loss with this name.

    Args:
      name: a key of `LOSSES`, or `FILE.py:NAME` for a custom loss. A plain function in a file becomes a loss without
        requirements.

    Raises:
      UserError: no such loss, or the name in the file is not a function.
    """
    if name in LOSSES:
        return LOSSES[name]
    if not plugins.is_plugin(name):
        raise UserError(f'There is no loss "{name}"{did_you_mean(name, LOSSES)}')
    function = plugins.load_plugin(name, "loss")
    if isinstance(function, Loss):
        return function
    if not callable(function):
        raise UserError(f"{name} is not a loss: it must be a function, got {type(function).__name__}.")
    return Loss(name.rpartition(":")[2], cast(LossFn, function))


def losses_of(phase: Phase) -> tuple[Loss, ...]:
    """Return the losses of a phase; raises UserError, with the phase's name, for an unknown one."""
    try:
        return tuple(get_loss(name) for name, _ in phase.losses)
    except UserError as error:
        raise UserError(f'Phase "{phase.name}": {error}') from error


def requirements_of(phase: Phase) -> frozenset[str]:
    """Return everything that the losses of a phase need, as keys of `REQUIREMENTS`."""
    return frozenset().union(*(term.requires for term in losses_of(phase)))
