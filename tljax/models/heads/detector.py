"""The detection head: class scores, a box and a centerness at every location of one or more feature maps."""

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

# Initial probability of every class at every location (Lin et al. 2017, arXiv:1708.02002, section 3.3).
PRIOR = 0.01
# Maximum number of groups of a GroupNorm, as in FCOS.
MAX_GROUPS = 32


class Detector(Head):
    """An anchor-free dense detector (FCOS, Tian et al. 2019, arXiv:1904.01355) on the features of a neck.

    A box is predicted as four distances from a location to its sides, each `stride * (exp(scale * x) - 1/2)`, with a
    trainable `scale` per level. FCOS uses the exponential too; with torchvision's ReLU, a distance that has become
    negative has no gradient. The exponent saturates at a limit well above the side of the input, so that the first
    steps cannot overflow. Subtracting half a stride lets a small box lie beside its location, anywhere in the
    surrounding cell.

    Args:
      shapes: [H, W, C] of every stage's features, in stage order.
      num_classes: number of class scores per location.
      side: side of the network's input in pixels.
      neck: "deconv" doubles the side of the last features by a transposed convolution; "fpn" is a feature pyramid;
        "unet" is a U-Net decoder; "none" uses the last features unchanged.
      channels: channels of the neck's features.
      levels: for "fpn", how many of the backbone's strides are used, starting from the deepest.
      stride: for "unet", stride of its features in input pixels.
      tower: number of 3×3 convolutions with GroupNorm and ReLU before the outputs, in separate towers for classes and
        boxes that are shared by all levels; FCOS has 4. With a tower the outputs are 3×3 convolutions, otherwise 1×1.
      dropout: rate before the outputs.
      dtype: dtype of the computation.
      rngs: required by Flax; initial values come from `tljax.models.initializers`.
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
        common = {"dtype": dtype, "rngs": rngs}
        constructors = {
            "deconv": lambda: necks.DeconvNeck(shapes, side, channels, **common),
            "fpn": lambda: necks.FPN(shapes, side, channels, levels, **common),
            "unet": lambda: necks.UNetNeck(shapes, side, channels, stride, **common),
            "none": lambda: necks.IdentityNeck(shapes, side),
        }
        if neck not in constructors:
            raise UserError(f'model.head_options.neck: there is no "{neck}"{did_you_mean(neck, constructors)}')
        self.side = side
        self.neck = constructors[neck]()
        width = self.neck.channels
        size = 3 if tower else 1
        self.class_tower = Tower(width, tower, **common)
        self.box_tower = Tower(width, tower, **common)
        self.drop = Dropout(dropout)
        self.classes = Conv(width, num_classes, size, **common)
        self.distances = Conv(width, 4, size, **common)
        self.centre = Conv(width, 1, size, **common)
        self.scale = nnx.Param(jnp.ones(len(self.neck.strides)))

    def __call__(
        self, features: dict[str, jax.Array], train: bool = False, rngs: nnx.Rngs | None = None
    ) -> dict[str, jax.Array]:
        """Return the outputs at P locations, the locations of all levels concatenated, finest level first.

        Args:
          features: {stage: [B, H, W, C]}.
          train: whether to use dropout.
          rngs: random keys for dropout in training.

        Returns:
          In at least float32: `logits` [B, P, num_classes], one binary classification per class; `boxes` [B, P, 4] in
          input pixels, which can extend beyond the input; `centre` [B, P], the centerness logit; `places` [B, P, 3],
          row and column of the location's center and the stride of its level, in input pixels.
        """
        pyramid = self.neck(features, train, rngs)
        levels = [self._predict_level(i, stride, x, train, rngs) for i, (stride, x) in enumerate(pyramid.items())]
        return {name: jnp.concatenate([level[name] for level in levels], 1) for name in levels[0]}

    def _predict_level(self, level: int, stride: float, x: jax.Array, train: bool, rngs: nnx.Rngs | None):
        class_features = self.drop(self.class_tower(x), train, rngs)
        box_features = self.drop(self.box_tower(x), train, rngs)
        logits = _flatten_locations(self.classes(class_features))
        distances = _flatten_locations(self.distances(box_features))
        centerness = _flatten_locations(self.centre(box_features))
        rows, columns = jnp.indices(x.shape[1:3], distances.dtype).reshape(2, -1)
        locations = jnp.stack([(rows + 0.5) * stride, (columns + 0.5) * stride, jnp.full_like(rows, stride)], -1)
        limit = math.log(2 * self.side / stride)
        exponent = self.scale[level] * distances
        saturated = jnp.where(exponent > 0, limit * jnp.tanh(exponent / limit), exponent)
        offsets = stride * (jnp.exp(saturated) - 0.5)
        corners = locations[:, :2] - offsets[..., :2], locations[:, :2] + offsets[..., 2:]
        return {
            "logits": logits,
            # Negative offsets can swap the corners; a box of negative size would have no gradient.
            "boxes": jnp.concatenate([jnp.minimum(*corners), jnp.maximum(*corners)], -1),
            "centre": centerness[..., 0],
            "places": jnp.broadcast_to(locations, (len(x), *locations.shape)),
        }

    @property
    def initializers(self) -> dict[str, Callable]:
        """Small weights, so that outputs hardly depend on the image, and a low prior of all classes, as in FCOS."""
        return {"head/(classes|distances|centre)/kernel": _small_normal, "head/classes/bias": _prior_logit}

    @property
    def main_features(self) -> dict[str, None]:
        """The stages that the neck reads, at full resolution."""
        return dict.fromkeys(self.neck.stages)


class Tower(nnx.Module):
    """3×3 convolutions, each with GroupNorm (Wu & He 2018, arXiv:1803.08494) and ReLU.

    BatchNorm is not used because the tower is shared by levels, whose statistics differ.
    """

    def __init__(self, channels: int, depth: int, *, dtype=None, rngs):
        self.depth = depth
        for i in range(depth):
            conv = Conv(channels, channels, bias=False, dtype=dtype, rngs=rngs)
            norm = nnx.GroupNorm(channels, math.gcd(MAX_GROUPS, channels), epsilon=1e-5, dtype=dtype, rngs=rngs)
            setattr(self, f"conv{i}", conv)
            setattr(self, f"norm{i}", norm)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, channels] → [B, H, W, channels]."""
        for i in range(self.depth):
            x = nnx.relu(getattr(self, f"norm{i}")(getattr(self, f"conv{i}")(x)))
        return x


def _small_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.normal(0, 0.01, shape)


def _prior_logit(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.full(shape, -math.log((1 - PRIOR) / PRIOR))


def _flatten_locations(x: jax.Array) -> jax.Array:
    """[B, H, W, C] → [B, H · W, C] in at least float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32)).reshape(len(x), -1, x.shape[-1])
