"""Convert weights from one library's layout to another's."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np

from tljax import models
from tljax.errors import UserError, did_you_mean
from tljax.models.heads.auxiliary import TRAIN_ONLY_PARAMS
from tljax.storage.run_files import read_config
from tljax.weights.detect import detect_backbone
from tljax.weights.download import error_summary
from tljax.weights.formats import LazyTensor, Tensors, write_safetensors
from tljax.weights.layouts import NATIVE, Layout, layouts
from tljax.weights.layouts.table import TRANSFORMS, Rule
from tljax.weights.load import WeightSource, open_weights, resolve_weights


@dataclasses.dataclass(frozen=True)
class ConversionReport:
    """Summary of a conversion.

    Attributes:
      tensors: number of tensors written.
      backbone: name of the backbone.
      source: layout that was read.
      layout: layout that was written.
    """

    tensors: int
    backbone: str
    source: str
    layout: str

    def describe(self) -> str:
        """Return the summary as a sentence."""
        return f"{self.tensors} tensors of {self.backbone}, from the {self.source} layout to the {self.layout} layout."


def convert(source: str, out: Path, layout: str | None = None) -> ConversionReport:
    """Write weights as .safetensors in another library's layout.

    Args:
      source: as `resolve_weights` takes it. Of a finished run, outputs that only its training used are left out.
      out: the file to write.
      layout: name of the layout to write; by default the family's first, which is torchvision's if it has the network.

    Raises:
      UserError: the backbone is unknown, or the layout cannot represent one of the tensors.
    """
    if out.suffix != ".safetensors":
        raise UserError(f"{out} must end in .safetensors.")
    weights = resolve_weights(source)
    with open_weights(weights) as tensors:
        if weights.path.is_dir():
            backbone, options = _backbone_of_run(weights)
            source_name = "tljax"
            source_layout = NATIVE
        else:
            best = detect_backbone(tensors)
            if not best.match.complete:
                raise UserError(f"{source} looks like {best.backbone}, but does not fit it. {best.match.describe()}")
            backbone, options = best.backbone, {}
            source_name = best.layout
            source_layout = layouts(*models.get_variant(backbone))[best.layout]
        targets = layouts(*models.get_variant(backbone, options))
        layout = layout or next(iter(targets))
        if layout not in targets:
            raise UserError(f'{backbone} has no layout "{layout}"{did_you_mean(layout, targets)}')
        converted = _convert_tensors(tensors, source_layout, targets[layout], layout)
        try:
            write_safetensors(out, converted, {"format": "pt", "backbone": backbone, "source": weights.name})
        except OSError as error:
            raise UserError(f"{out} cannot be written: {error_summary(error)}.") from error
    return ConversionReport(len(converted), backbone, source_name, layout)


def _backbone_of_run(run: WeightSource) -> tuple[str, dict]:
    """Return the name of a finished run's backbone, and its options."""
    model = read_config(run.path / "config.json").model
    return model.backbone, dict(model.options)


def _convert_tensors(tensors: Tensors, source: Layout, target: Layout, target_name: str) -> dict[str, LazyTensor]:
    """Return the tensors in the target layout, unread, without those that only training uses."""
    converted, unnamed = {}, []
    for name, tensor in tensors.items():
        if source.ignores(name) or re.fullmatch(TRAIN_ONLY_PARAMS, name):
            continue
        source_rule = source.rule_for_name(name)
        assert source_rule is not None  # `convert` checks that the layout names all tensors
        path = source_rule.path
        target_rule = target.rule_for_path(path)
        if target_rule is None:
            unnamed.append(path)
            continue
        try:
            converted[target_rule.name] = _convert_lazily(tensor, source_rule, target_rule)
        except (ValueError, IndexError) as error:  # e.g. a hidden layer on a grid that the library's network lacks
            shape = tuple(tensor.shape)
            raise UserError(f"The {target_name} layout cannot represent {path} of shape {shape}.") from error
    if unnamed:
        raise UserError(f"The {target_name} layout has no names for {', '.join(unnamed[:8])}.")
    return converted


def _convert_lazily(tensor: LazyTensor | np.ndarray, source: Rule, target: Rule) -> LazyTensor:
    """Return a tensor in the target layout, unread; raises if the target cannot represent it."""
    from_source = TRANSFORMS[source.transform].from_foreign
    to_target = TRANSFORMS[target.transform].to_foreign
    # Transforming one broadcast number gives the shape without reading the tensor.
    shape = to_target(from_source(np.broadcast_to(np.zeros((), tensor.dtype), tuple(tensor.shape)))).shape
    return LazyTensor(shape, tensor.dtype, lambda: to_target(from_source(np.asarray(tensor))))
