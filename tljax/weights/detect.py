"""Detect which backbone a weights file holds, and in which layout."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Set
from typing import Any, NamedTuple

from tljax import models
from tljax.errors import UserError
from tljax.models import Model
from tljax.weights.assign import MatchReport, match_tensors, native_shape
from tljax.weights.formats import Tensors
from tljax.weights.layouts import Layout, layouts


class BackboneGuess(NamedTuple):
    """A backbone that a file may hold.

    Attributes:
      backbone: name of the backbone.
      layout: name of the tensors' layout, e.g. "torchvision".
      model: abstract model, with the head that the tensors imply.
      match: how the tensors match the model.
    """

    backbone: str
    layout: str
    model: Model
    match: MatchReport

    @property
    def num_mismatches(self) -> int:
        """Number of tensors and variables that do not match."""
        return len(self.match.unexpected) + len(self.match.missing) + len(self.match.shape_mismatches)


def detect_backbone(tensors: Tensors) -> BackboneGuess:
    """Return the backbone that fits the tensors best, by names and shapes alone; no values are read.

    Raises:
      UserError: no layout names even half of the tensors.
    """
    if not tensors:
        raise UserError("There are no tensors to detect a backbone from.")
    candidates = sorted(_rank_by_names(tensors), key=lambda candidate: candidate[:2])
    fewest = candidates[0][0]
    if fewest > len(tensors) / 2:
        raise UserError(f"No backbone has tensors named like {', '.join(list(tensors)[:3])}.")
    best = None
    for num_unknown, _, backbone, layout in candidates:
        if num_unknown > fewest:
            break
        try:
            guess = _fit(tensors, backbone, layout)
        except UserError:  # a decoder whose number of blocks differs from the backbone's number of strides
            continue
        if best is None or guess.num_mismatches < best.num_mismatches:
            best = guess
        if best.num_mismatches == 0:
            break
    if best is None:
        raise UserError(f"No backbone has a head like that of {', '.join(list(tensors)[:3])}.")
    return best


def _rank_by_names(tensors: Tensors) -> Iterator[tuple[int, int, str, str]]:
    """Yield (number of tensors unknown to the layout, 1 if layout and variant differ in library, backbone, layout)."""
    num_unknown = {}  # by layout, because many variants share one
    for backbone in models.list_backbones():
        for name, layout in _layouts(backbone).items():
            if layout not in num_unknown:
                num_unknown[layout] = sum(layout.rule_for_name(t) is None and not layout.ignores(t) for t in tensors)
            other_library = (name == "keras") != backbone.endswith(("_keras", "_v1"))
            yield num_unknown[layout], int(other_library), backbone, name


@functools.cache
def _layouts(backbone: str) -> dict[str, Layout]:
    """Return the layouts of a backbone; cached, because each detection uses all of them and they compile patterns."""
    return layouts(*models.get_variant(backbone))


def _fit(tensors: Tensors, backbone: str, name: str) -> BackboneGuess:
    """Match the tensors to a backbone in the layout called `name`."""
    layout = _layouts(backbone)[name]
    options = head_options(tensors, layout)
    if "head" not in options:  # the layout may name auxiliary heads that the variant does not have
        options["auxiliary"] &= bool(getattr(models.get_variant(backbone)[1], "auxiliary", ()))
    model = models.create_model(backbone, image_size=299, rngs=None, **options)  # the size that Inception v3 needs
    keep = () if options["num_classes"] else "head/.*"
    return BackboneGuess(backbone, name, model, match_tensors(tensors, model, layout, keep=keep))


def head_options(tensors: Tensors, layout: Layout) -> dict[str, Any]:
    """Return the arguments of `models.create_model` for the head that the tensors imply; 0 classes if there is none."""
    shapes = {}
    for name, tensor in tensors.items():
        if (rule := layout.rule_for_name(name)) and rule.path.startswith("head/"):
            shapes[rule.path.removeprefix("head/")] = native_shape(rule, tensor.shape) or (0, 0)
    layers = {path.split("/")[0] for path in shapes}
    if "score" in layers:
        return _dense_prediction_options(shapes, layers, layout)
    hidden = [shapes[f"{layer}/kernel"] for layer in sorted(layers) if layer.startswith("hidden")]
    options = {
        "num_classes": shapes["dense/kernel"][-1] if "dense" in layers else 0,
        "auxiliary": any(layer.startswith("aux") for layer in layers),
    }
    # The networks with hidden layers apply them to 7×7 locations.
    return options | ({"hidden": [h[-1] for h in hidden], "pool": "flatten", "pool_size": 7} if hidden else {})


def _dense_prediction_options(
    shapes: Mapping[str, tuple[int, ...]], layers: Set[str], layout: Layout
) -> dict[str, Any]:
    """Return the arguments of `models.create_model` for a head with a prediction at every pixel.

    Args:
      shapes: {path below `head/`: shape}.
      layers: first components of these paths.
      layout: layout of the tensors.
    """
    options = {"num_classes": shapes["score/kernel"][-1], "auxiliary": "aux1" in layers}
    if "unit" in layers:
        return options | dict(layout.head_options)
    blocks = sorted(int(layer.removeprefix("block")) for layer in layers if layer.startswith("block"))
    return (
        options
        | {
            "head": "unet",
            "channels": tuple(shapes[f"block{k}/unit1/conv/kernel"][-1] for k in blocks),
            "center": "center" in layers,
            "batch_norm": "block1/unit1/bn/scale" in shapes,
            "kernel": shapes["score/kernel"][0],
        }
        | dict(layout.head_options)
        | ({"upsample": "transposed"} if "up1" in layers else {})
    )
