"""A model by name: backbone stages in a chain, and a head on their maps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tljax.errors import UserError, nearest
from tljax.models import init, resnet, vgg
from tljax.models.heads import HEADS

FAMILIES = {"vgg": vgg, "resnet": resnet}


class Model(nnx.Module):
    """A chain of named stages under a head.

    Attributes:
      family: key of `FAMILIES`, which `tljax.weights` looks up its renaming rules by.
      config: the family's variant.
      stage_names: the stages in order; each is an attribute, and so is `head`.
      cut: stages of the variant that are not built, because the head taps an earlier one.
    """

    def __init__(self, family: str, config: Any, stages: dict[str, nnx.Module], cut: tuple[str, ...]):
        self.family, self.config = family, config
        self.stage_names, self.cut = tuple(stages), cut
        for name, stage in stages.items():
            setattr(self, name, stage)

    def features(self, images: jax.Array, train: bool = False, rngs: nnx.Rngs | None = None):
        """Every stage's map by name: preprocessed images [B, H, W, 3] → {stage: [B, h, w, c]}."""
        maps, x = {}, images
        for name in self.stage_names:
            x = maps[name] = getattr(self, name)(x, train=train, rngs=rngs)
        return maps

    def __call__(self, images: jax.Array, train: bool = False, rngs: nnx.Rngs | None = None):
        """What the head makes of preprocessed images [B, H, W, 3]; `rngs` only for dropout in training."""
        return self.head(self.features(images, train, rngs), train=train, rngs=rngs)


def names() -> list[str]:
    """Every backbone."""
    return [name for family in FAMILIES.values() for name in family.VARIANTS]


def build(
    backbone: str | Any,
    *,
    num_classes: int,
    head: str = "classifier",
    tap: str | None = None,
    image_size: int = 224,
    dtype: jnp.dtype | None = None,
    rngs: nnx.Rngs | None,
    **head_options,
) -> Model:
    """Builds a model with random weights (`tljax.models.init`).

    Args:
      backbone: name, e.g. "vgg16", or a family's config such as `vgg.Variant(blocks=((8,), (16, 16)))`.
      num_classes: outputs of the head.
      head: key of `HEADS`.
      tap: the stage whose map feeds the head; later ones are not built. None: the last.
      image_size: side of the input in pixels; only heads that flatten depend on it.
      dtype: of the computation, e.g. jnp.bfloat16; parameters and statistics are float32.
      rngs: stream `params`; None leaves the model abstract, its leaves shapes without values.
      **head_options: of the head's class.

    Raises:
      UserError: no such backbone, head, or stage.
    """
    model = nnx.eval_shape(
        lambda: _construct(backbone, num_classes, head, tap, image_size, dtype, nnx.Rngs(0), head_options)
    )
    if rngs is not None:
        init.fill(model, rngs.params())
    return model


def _construct(backbone, num_classes, head, tap, image_size, dtype, rngs, head_options) -> Model:
    family, config = _find(backbone)
    if head not in HEADS:
        raise UserError(f'There is no model.head "{head}"{nearest(head, HEADS)}')
    stages = FAMILIES[family].stages(config, dtype=dtype, rngs=rngs)
    if tap is not None and tap not in stages:
        raise UserError(f'model.tap: there is no stage "{tap}" in {backbone}{nearest(tap, stages)}')
    order = list(stages)
    last = order.index(tap) + 1 if tap else len(order)
    model = Model(family, config, {n: stages[n] for n in order[:last]}, cut=tuple(order[last:]))
    shape = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    maps = nnx.eval_shape(lambda m, x: m.features(x), model, shape)
    shapes = {name: maps[name].shape[1:] for name in model.stage_names}
    if 0 in shapes[model.stage_names[-1]]:
        raise UserError(f"data.image_size={image_size} is too small for {backbone}: its last map is empty.")
    model.head = HEADS[head](shapes, num_classes, dtype=dtype, rngs=rngs, **head_options)
    return model


def _find(backbone: str | Any) -> tuple[str, Any]:
    for family, module in FAMILIES.items():
        if isinstance(backbone, str) and backbone in module.VARIANTS:
            return family, module.VARIANTS[backbone]
        if isinstance(backbone, module.Variant):
            return family, backbone
    raise UserError(f'There is no model.backbone "{backbone}"{nearest(backbone, names())}')
