"""Weights from one library's names into another's."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np

from tljax import models
from tljax.errors import UserError, did_you_mean
from tljax.models.heads.auxiliary import TRAIN_ONLY_OUTPUTS
from tljax.storage.run_files import read_config
from tljax.weights.detect import detect_backbone
from tljax.weights.download import reason
from tljax.weights.formats import LazyTensor, write_safetensors
from tljax.weights.layouts import NATIVE, layouts
from tljax.weights.layouts.table import TRANSFORMS, Rule
from tljax.weights.load import WeightSource, open_weights, resolve_weights


@dataclasses.dataclass(frozen=True)
class ConversionReport:
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


def convert(source: str, out: Path, layout: str | None = None) -> ConversionReport:
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
    found = resolve_weights(source)
    with open_weights(found) as tensors:
        if found.path.is_dir():
            backbone, options, theirs, from_names = *_backbone_of(found), NATIVE, "tljax"
        else:
            best = detect_backbone(tensors)
            if not best.match.complete:
                raise UserError(f"{source} looks like {best.backbone}, but does not fit it. {best.match.describe()}")
            backbone, options, from_names = best.backbone, {}, best.layout
            theirs = layouts(*models.get_variant(backbone))[best.layout]
        known = layouts(*models.get_variant(backbone, options))
        layout = layout or next(iter(known))
        if layout not in known:
            raise UserError(f'{backbone} has no layout "{layout}"{did_you_mean(layout, known)}')
        renamed, nameless = {}, []
        for name, tensor in tensors.items():
            if theirs.ignores(name) or re.fullmatch(TRAIN_ONLY_OUTPUTS, name):
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
    return ConversionReport(len(renamed), backbone, from_names, layout)


def _backbone_of(run: WeightSource) -> tuple[str, dict]:
    model = read_config(run.path / "config.json").model
    return model.backbone, dict(model.options)


def _renamed(tensor: LazyTensor | np.ndarray, source: Rule, target: Rule) -> LazyTensor:
    """A tensor on its way from one layout to another, still unread; raises where the target has no form for it."""
    ours, theirs = TRANSFORMS[source.transform].from_foreign, TRANSFORMS[target.transform].to_foreign
    # Shapes without reading: a transform of one number, broadcast, costs nothing.
    shape = theirs(ours(np.broadcast_to(np.zeros((), tensor.dtype), tuple(tensor.shape)))).shape
    return LazyTensor(shape, tensor.dtype, lambda: theirs(ours(np.asarray(tensor))))
