"""A custom backbone: a small ConvMixer (Trockman & Kolter 2022, arXiv:2201.09792) for the digits.

    python run.py --config=examples/backbone.py
    python -m tljax.models examples/backbone.py:CONVMIXER

docs/extending.md describes the contract.
"""

import dataclasses

from flax import nnx

from tljax import config as schema
from tljax.models.layers import BatchNorm, Conv


@dataclasses.dataclass(frozen=True)
class Variant:
    """Architecture; `model.options` can replace fields.

    Attributes:
      width: channels of all stages.
      depths: blocks of each stage after the stem.
      kernel: side of the depthwise kernels.
      patch: side of a patch, in pixels.
    """

    width: int = 32
    depths: tuple[int, ...] = (1, 1, 1)
    kernel: int = 3
    patch: int = 1


CONVMIXER = Variant()
WIDE = Variant(width=64)


class Unit(nnx.Module):
    """Convolution, GELU and BatchNorm."""

    def __init__(self, inputs, outputs, size, *, dtype, rngs, **options):
        self.conv = Conv(inputs, outputs, size, dtype=dtype, rngs=rngs, **options)
        self.bn = BatchNorm(outputs, dtype=dtype, rngs=rngs)

    def __call__(self, x, train=False, rngs=None):
        """[B, H, W, inputs] → [B, H / stride, W / stride, outputs]."""
        return self.bn(nnx.gelu(self.conv(x)), train)


class Stage(nnx.Module):
    """Blocks that mix locations, with a residual connection, and then channels."""

    def __init__(self, depth, variant, *, dtype, rngs):
        width, options = variant.width, {"dtype": dtype, "rngs": rngs}
        self.spatial = nnx.List([Unit(width, width, variant.kernel, groups=width, **options) for _ in range(depth)])
        self.pointwise = nnx.List([Unit(width, width, 1, **options) for _ in range(depth)])

    def __call__(self, x, train=False, rngs=None):
        """[B, H, W, width] → the same shape."""
        for spatial, pointwise in zip(self.spatial, self.pointwise, strict=True):
            x = pointwise(x + spatial(x, train), train)
        return x


def stages(variant, *, inputs, dtype, rngs):
    """Return {name: module} of the stages in order, for images with `inputs` channels."""
    options = {"dtype": dtype, "rngs": rngs}
    stem = Unit(inputs, variant.width, variant.patch, stride=variant.patch, padding=0, **options)
    blocks = {f"stage{k}": Stage(depth, variant, **options) for k, depth in enumerate(variant.depths, start=1)}
    return {"stem": stem, **blocks}


def get_config():
    """Train the network on the digits."""
    c = schema.default()
    c.model.backbone = "examples/backbone.py:CONVMIXER"
    c.strategy.name = "scratch"
    c.optim.lr = 3e-3
    c.train.epochs = 4
    return c
