"""Weights from one library's names into another's."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np

from tljax import models
from tljax.errors import UserError, nearest
from tljax.models.heads.auxiliary import FURTHER
from tljax.weights.detect import guess
from tljax.weights.download import reason
from tljax.weights.formats import LazyTensor, write_safetensors
from tljax.weights.layouts import OURS, layouts
from tljax.weights.layouts.table import TRANSFORMS, Rule
from tljax.weights.load import Weights, find, open_weights


@dataclasses.dataclass(frozen=True)
class Written:
    """What was converted: tensors written, the network, and whose names they had and have now."""

    tensors: int
    backbone: str
    source: str
    layout: str

    def describe(self) -> str:
        """As a sentence."""
        return (
            f"{self.tensors} tensors of {self.backbone}, from the names of {self.source} into those of {self.layout}."
        )


def convert(source: str, out: Path, layout: str | None = None) -> Written:
    """Writes weights as .safetensors in another library's names.

    Args:
      source: as `find` takes it; a finished run too, without outputs that only its training had.
      out: the file to write.
      layout: whose names; None: the first that the family has, which is torchvision's where it has the network.

    Raises:
      UserError: the source's network is unknown, or the layout has no name for one of its tensors.
    """
    if out.suffix != ".safetensors":
        raise UserError(f"{out} must end in .safetensors.")
    found = find(source)
    with open_weights(found) as tensors:
        if found.path.is_dir():
            backbone, options, theirs, from_names = *_backbone_of(found), OURS, "tljax"
        else:
            best = guess(tensors)
            if not best.match.whole:
                raise UserError(f"{source} looks like {best.backbone}, but does not fit it. {best.match.describe()}")
            backbone, options, from_names = best.backbone, {}, best.layout
            theirs = layouts(*models.find(backbone))[best.layout]
        known = layouts(*models.find(backbone, options))
        layout = layout or next(iter(known))
        if layout not in known:
            raise UserError(f'{backbone} has no layout "{layout}"{nearest(layout, known)}')
        renamed, nameless = {}, []
        for name, tensor in tensors.items():
            if theirs.ignores(name) or re.fullmatch(FURTHER, name):
                continue
            place = theirs.place(name)
            if (origin := known[layout].origin(place.path)) is None:
                nameless.append(place.path)
                continue
            try:
                renamed[origin.name] = _renamed(tensor, place, origin)
            except (ValueError, IndexError) as error:  # a head of one's own, on a grid that the library does not have
                shape = tuple(tensor.shape)
                raise UserError(f"{layout} has no form for {place.path} of shape {shape}.") from error
        if nameless:
            raise UserError(f"{layout} has no names for {', '.join(nameless[:8])}.")
        try:
            write_safetensors(out, renamed, {"format": "pt", "backbone": backbone, "source": found.name})
        except OSError as error:
            raise UserError(f"{out} cannot be written: {reason(error)}.") from error
    return Written(len(renamed), backbone, from_names, layout)


def _backbone_of(run: Weights) -> tuple[str, dict]:
    config = json.loads((run.path / "config.json").read_text())
    return config["model"]["backbone"], config["model"]["options"]


def _renamed(tensor: LazyTensor | np.ndarray, source: Rule, target: Rule) -> LazyTensor:
    """A tensor on its way from one layout to another, still unread; raises where the target has no form for it."""
    ours, theirs = TRANSFORMS[source.transform].ours, TRANSFORMS[target.transform].theirs
    # Shapes without reading: a transform of one number, broadcast, costs nothing.
    shape = theirs(ours(np.broadcast_to(np.zeros((), tensor.dtype), tuple(tensor.shape)))).shape
    return LazyTensor(shape, tensor.dtype, lambda: theirs(ours(np.asarray(tensor))))
