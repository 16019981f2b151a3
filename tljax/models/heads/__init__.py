"""Heads: modules that read the feature maps of all stages and return the outputs of a task."""

import inspect
from typing import Any

from tljax import plugins
from tljax.errors import UserError, did_you_mean
from tljax.models.heads.base import Head
from tljax.models.heads.classifier import Classifier
from tljax.models.heads.detector import Detector
from tljax.models.heads.fcn import FCN
from tljax.models.heads.unet import UNet

__all__ = ["FCN", "HEADS", "Classifier", "Detector", "Head", "UNet", "get_head"]

HEADS = {
    "classifier": Classifier,
    "unet": UNet,
    "fcn": FCN,
    "detector": Detector,
}


def get_head(name: str) -> Any:
    """Return the class of a head.

    Args:
      name: key of `HEADS`, or `FILE.py:NAME` for a custom subclass of `Head`.

    Raises:
      UserError: there is no such head, or the name in the file is not a head.
    """
    if name in HEADS:
        return HEADS[name]
    if not plugins.is_plugin(name):
        raise UserError(f'There is no model.head "{name}"{did_you_mean(name, HEADS)}')
    head = plugins.load_plugin(name, "head")
    if not isinstance(head, type) or not issubclass(head, Head):
        kind = f"the class {head.__name__}" if isinstance(head, type) else type(head).__name__
        raise UserError(f"{name} is not a head: it must be a subclass of tljax.models.heads.Head, got {kind}.")
    options = {"side": 1} if "side" in inspect.signature(head.__init__).parameters else {}
    # Flax's metaclass hides the signature of the class itself.
    if not plugins.accepts(head.__init__, None, {}, 1, **options, dtype=None, rngs=None):
        raise UserError(f"{name}: the constructor must take (shapes, num_classes, *, ..., dtype, rngs).")
    return head
