"""Objectives: pure functions that a phase weighs and adds up to its loss. `Loss` has the contract."""

from __future__ import annotations

from tljax import plugins
from tljax.errors import UserError, did_you_mean
from tljax.losses.base import REQUIREMENTS, Loss, loss
from tljax.losses.detection import detection, detection_centerness, detection_focal, detection_giou, source_detection
from tljax.losses.distillation import attention_transfer, delta, distillation, hints, lwf
from tljax.losses.regularization import l2, l2_sp
from tljax.losses.segmentation import boundary_cross_entropy, dice, focal, lovasz
from tljax.losses.semi_supervised import fixmatch, mean_teacher, pseudo_label
from tljax.losses.supervised import aux_cross_entropy, cross_entropy, source_cross_entropy

__all__ = ["LOSSES", "REQUIREMENTS", "Loss", "get_loss", "loss"]

LOSSES: dict[str, Loss] = {
    o.name: o
    for o in (
        *(cross_entropy, aux_cross_entropy, source_cross_entropy),
        *(dice, focal, lovasz, boundary_cross_entropy),
        *(detection, detection_focal, detection_giou, detection_centerness, source_detection),
        *(distillation, attention_transfer, hints, delta, lwf),
        *(l2, l2_sp),
        *(pseudo_label, fixmatch, mean_teacher),
    )
}


def get_loss(name: str) -> Loss:
    """The objective of a name of `OBJECTIVES`, or of `FILE.py:NAME`, where a plain function needs nothing.

    Raises:
      UserError: no such objective, or a file that does not give one.
    """
    if name in LOSSES:
        return LOSSES[name]
    if not plugins.is_plugin(name):
        raise UserError(f'There is no objective "{name}"{did_you_mean(name, LOSSES)}')
    found = plugins.load_plugin(name, "objective")
    if isinstance(found, Loss):
        return found
    if not callable(found):
        raise UserError(f"{name} is no objective: it must be a function, got {type(found).__name__}.")
    return Loss(name.rpartition(":")[2], found)
