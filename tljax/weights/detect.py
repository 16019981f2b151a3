"""What a file of weights is: which network, in whose names, and what would not fit."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Set
from typing import Any, NamedTuple

import numpy as np

from tljax import models
from tljax.errors import UserError
from tljax.models import Model
from tljax.weights.assign import MatchReport, match, shape_after
from tljax.weights.layouts import Layout, layouts


class BackboneGuess(NamedTuple):
    """A network that a file may hold.

    Attributes:
      backbone: its name.
      layout: whose names the tensors have, e.g. "torchvision".
      model: abstract, with the head that the tensors speak of.
      match: how they fit it.
    """

    backbone: str
    layout: str
    model: Model
    match: MatchReport

    @property
    def faults(self) -> int:
        """How many tensors and leaves do not fit."""
        return len(self.match.unused) + len(self.match.missing) + len(self.match.shape_mismatches)


def detect_backbone(tensors: Mapping[str, np.ndarray]) -> BackboneGuess:
    """The network that fits the tensors best, by names and shapes alone; nothing is read.

    Raises:
      UserError: no layout has a place for even half of the tensors.
    """
    if not tensors:
        raise UserError("There are no tensors to tell a network by.")
    ranked = sorted(_by_name(tensors), key=lambda found: found[:2])
    fewest = ranked[0][0]
    if fewest > len(tensors) / 2:
        raise UserError(f"No network here has tensors named like {', '.join(list(tensors)[:3])}.")
    best = None
    for strangers, _, backbone, layout in ranked:
        if strangers > fewest:
            break
        try:
            found = _fit(tensors, backbone, layout)
        except UserError:  # a decoder of another number of blocks than this backbone has strides
            continue
        if best is None or found.faults < best.faults:
            best = found
        if best.faults == 0:
            break
    if best is None:
        raise UserError(f"No network here has a head like that of {', '.join(list(tensors)[:3])}.")
    return best


def _by_name(tensors: Mapping[str, np.ndarray]) -> Iterator[tuple[int, int, str, str]]:
    """(tensors without a place, whether layout and variant are of different libraries, backbone, layout)."""
    strangers = {}  # by layout, which many variants share
    for backbone in models.list_backbones():
        for name, layout in _layouts(backbone).items():
            if layout not in strangers:
                strangers[layout] = sum(layout.place(t) is None and not layout.ignores(t) for t in tensors)
            foreign = (name == "keras") != backbone.endswith(("_keras", "_v1"))
            yield strangers[layout], int(foreign), backbone, name


@functools.cache
def _layouts(backbone: str) -> dict[str, Layout]:
    """Kept, because a layout compiles its patterns when it is first asked, and all are asked for every guess."""
    return layouts(*models.get_variant(backbone))


def _fit(tensors: Mapping[str, np.ndarray], backbone: str, name: str) -> BackboneGuess:
    layout = _layouts(backbone)[name]
    options = head_options(tensors, layout)
    if "head" not in options:  # the layout may name more than the variant has
        options["auxiliary"] &= bool(getattr(models.get_variant(backbone)[1], "auxiliary", ()))
    model = models.create_model(backbone, image_size=299, rngs=None, **options)  # Inception v3 needs as much
    keep = () if options["num_classes"] else "head/.*"
    return BackboneGuess(backbone, name, model, match(tensors, model, layout, keep=keep))


def head_options(tensors: Mapping[str, np.ndarray], layout: Layout) -> dict[str, Any]:
    """Arguments of `models.build` for the head that the tensors speak of; 0 classes if there is none."""
    shapes = {}
    for name, tensor in tensors.items():
        if (rule := layout.place(name)) and rule.path.startswith("head/"):
            shapes[rule.path.removeprefix("head/")] = shape_after(rule, tensor.shape) or (0, 0)
    parts = {path.split("/")[0] for path in shapes}
    if "score" in parts:
        return _dense_head(shapes, parts, layout)
    hidden = [shapes[f"{part}/kernel"] for part in sorted(parts) if part.startswith("hidden")]
    options = {
        "num_classes": shapes["dense/kernel"][-1] if "dense" in parts else 0,
        "auxiliary": any(part.startswith("aux") for part in parts),
    }
    # The networks that have hidden layers have them on 7×7 places.
    return options | ({"hidden": [h[-1] for h in hidden], "pool": "flatten", "pool_size": 7} if hidden else {})


def _dense_head(shapes: Mapping[str, tuple[int, ...]], parts: Set[str], layout: Layout) -> dict[str, Any]:
    """The same for heads with an answer at every pixel; `shapes` below `head/`, and the first parts of these paths."""
    options = {"num_classes": shapes["score/kernel"][-1], "auxiliary": "aux1" in parts}
    if "unit" in parts:
        return options | dict(layout.head)
    blocks = sorted(int(part.removeprefix("block")) for part in parts if part.startswith("block"))
    return (
        options
        | {
            "head": "unet",
            "channels": tuple(shapes[f"block{k}/unit1/conv/kernel"][-1] for k in blocks),
            "center": "center" in parts,
            "batch_norm": "block1/unit1/bn/scale" in shapes,
            "kernel": shapes["score/kernel"][0],
        }
        | dict(layout.head)
        | ({"upsample": "transposed"} if "up1" in parts else {})
    )
