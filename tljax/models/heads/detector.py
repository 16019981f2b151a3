"""The head of detection: at every place of one or more maps, classes, a box and how central the place is in it."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tljax.errors import UserError, did_you_mean
from tljax.models.heads import necks
from tljax.models.heads.base import Head, Shapes
from tljax.models.layers import Conv, Dropout

# The chance at which every class starts everywhere (Lin et al. 2017, arXiv:1708.02002, section 3.3).
PRIOR = 0.01
# The most groups of a GroupNorm, as in FCOS.
GROUPS = 32


class Detector(Head):
    """An anchor-free dense detector (FCOS, Tian et al. 2019, arXiv:1904.01355) on the maps of a neck.

    A box is four distances from its place to its sides, each `stride * (exp(scale * x) - 1/2)`, with a learned `scale`
    for every level. FCOS has the exponential too; ReLU, which torchvision takes in its stead, learns nothing more of a
    side that has once gone below zero. The exponent bends towards a limit well above the input's side, so that no first
    step overflows. The half stride less lets a small box lie beside its place, anywhere in the cell around it.

    Args:
      shapes: [H, W, C] of every stage's map, in the order of the stages.
      num_classes: outputs of each place besides the box.
      side: of the network's input in pixels.
      neck: "deconv" doubles the last map's side by a transposed convolution; "fpn" is a feature pyramid; "unet" is a
        U-Net's decoder; "none" leaves the last map as it is.
      channels: of the neck's maps.
      levels: of "fpn", how many of the backbone's strides, the deepest ones.
      stride: of "unet", that of its map in pixels of the input.
      tower: 3×3 convolutions with GroupNorm and ReLU before the outputs, once for the classes and once for the box, the
        same on every level; FCOS has 4. With any, the outputs are 3×3 convolutions, otherwise 1×1.
      dropout: rate before the outputs.
    """

    reusable_params = r"(?!classes/).*"

    def __init__(
        self,
        shapes: Shapes,
        num_classes: int,
        *,
        side: int,
        neck: str = "deconv",
        channels: int = 512,
        levels: int = 3,
        stride: int = 4,
        tower: int = 0,
        dropout: float = 0.0,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        given = {"dtype": dtype, "rngs": rngs}
        make = {
            "deconv": lambda: necks.DeconvNeck(shapes, side, channels, **given),
            "fpn": lambda: necks.FPN(shapes, side, channels, levels, **given),
            "unet": lambda: necks.UNetNeck(shapes, side, channels, stride, **given),
            "none": lambda: necks.IdentityNeck(shapes, side),
        }
        if neck not in make:
            raise UserError(f'model.head_options.neck: there is no "{neck}"{did_you_mean(neck, make)}')
        self.side, self.neck = side, make[neck]()
        width, size = self.neck.channels, 3 if tower else 1
        self.class_tower, self.box_tower = (Tower(width, tower, **given) for _ in range(2))
        self.drop = Dropout(dropout)
        self.classes, self.distances, self.centre = (Conv(width, n, size, **given) for n in (num_classes, 4, 1))
        self.scale = nnx.Param(jnp.ones(len(self.neck.strides)))

    def __call__(
        self, features: dict[str, jax.Array], train: bool = False, rngs: nnx.Rngs | None = None
    ) -> dict[str, jax.Array]:
        """Maps [B, H, W, C] by stage → what each of P places says, all levels one after another, finest first.

        Returns:
          `logits` [B, P, num_classes], each against no object of its class; `boxes` [B, P, 4] in pixels of the input,
          which may reach beyond it; `centre` [B, P], the logit of the centre-ness; `places` [B, P, 3], row and column
          of the place's centre and its level's stride, in pixels of the input. Float32 at least.
        """
        maps = self.neck(features, train, rngs)
        found = [self._level(i, *level, train, rngs) for i, level in enumerate(maps.items())]
        return {name: jnp.concatenate([level[name] for level in found], 1) for name in found[0]}

    def _level(self, level: int, stride: float, x: jax.Array, train: bool, rngs: nnx.Rngs | None):
        kind = self.drop(self.class_tower(x), train, rngs)
        where = self.drop(self.box_tower(x), train, rngs)
        logits, distances, centre = (
            _wide(y).reshape(len(x), -1, y.shape[-1])
            for y in (self.classes(kind), self.distances(where), self.centre(where))
        )
        rows, columns = jnp.indices(x.shape[1:3], distances.dtype).reshape(2, -1)
        places = jnp.stack([(rows + 0.5) * stride, (columns + 0.5) * stride, jnp.full_like(rows, stride)], -1)
        limit, exponent = math.log(2 * self.side / stride), self.scale[level] * distances
        bent = jnp.where(exponent > 0, limit * jnp.tanh(exponent / limit), exponent)
        reach = stride * (jnp.exp(bent) - 0.5)
        ends = places[:, :2] - reach[..., :2], places[:, :2] + reach[..., 2:]
        return {
            "logits": logits,
            # Less than half a stride can put the ends the wrong way round, where a box has no gradient.
            "boxes": jnp.concatenate([jnp.minimum(*ends), jnp.maximum(*ends)], -1),
            "centre": centre[..., 0],
            "places": jnp.broadcast_to(places, (len(x), *places.shape)),
        }

    @property
    def initialisers(self) -> dict[str, Callable]:
        """Outputs that hardly depend on the picture, and classes that are rare, as in FCOS."""
        return {"head/(classes|distances|centre)/kernel": _small, "head/classes/bias": _rare}

    @property
    def main_features(self) -> dict[str, None]:
        """The stages whose maps are looked at, whole."""
        return dict.fromkeys(self.neck.stages)


class Tower(nnx.Module):
    """3×3 convolutions, each with GroupNorm (Wu & He 2018, arXiv:1803.08494) and ReLU.

    Not BatchNorm: maps of several levels go through it, whose statistics differ.
    """

    def __init__(self, channels: int, depth: int, *, dtype=None, rngs):
        self.depth = depth
        for i in range(depth):
            conv = Conv(channels, channels, bias=False, dtype=dtype, rngs=rngs)
            norm = nnx.GroupNorm(channels, math.gcd(GROUPS, channels), epsilon=1e-5, dtype=dtype, rngs=rngs)
            setattr(self, f"conv{i}", conv)
            setattr(self, f"norm{i}", norm)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, channels] → the same shape."""
        for i in range(self.depth):
            x = nnx.relu(getattr(self, f"norm{i}")(getattr(self, f"conv{i}")(x)))
        return x


def _small(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.normal(0, 0.01, shape)


def _rare(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.full(shape, -math.log((1 - PRIOR) / PRIOR))


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
