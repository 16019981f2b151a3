"""Preprocessing, which belongs to the weights: resolution, interpolation, channel order, scale, mean and deviation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """What network input is made of a picture: `(picture · scale - mean) / std`, in channel order `order`.

    Attributes:
      name: as `model.preprocess` takes it.
      scale: factor on the 0..255 picture.
      mean: subtracted after scaling, in channel order `order`.
      std: divided by, in channel order `order`.
      order: "rgb" or "bgr".
      size: side that the weights were trained at, in pixels; None: the data's own.
      interpolation: "bilinear" or "bicubic", both with antialiasing and half-pixel centres.
      channels: of the network's input. One: pictures in colour are turned grey, and mean and deviation are averages
        of the three. More than three: mean and deviation are repeated in turn, as `port.adapt_channels` repeats the
        first convolution's kernel.
    """

    name: str
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    order: str = "rgb"
    size: int | None = None
    interpolation: str = "bilinear"
    channels: int = 3

    @classmethod
    def from_dict(cls, fields: Mapping) -> Preprocess:
        """Reads what result.json holds."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})

    def same_values(self, other: Preprocess) -> bool:
        """Whether a picture's values become the same, whatever the size and the interpolation."""
        return all(getattr(self, f) == getattr(other, f) for f in ("scale", "mean", "std", "order"))


PRESETS = {
    p.name: p
    for p in (
        # Keras' VGG and ResNet, from the Caffe models: BGR 0..255 minus ImageNet's means.
        Preprocess("caffe", 1.0, (103.939, 116.779, 123.68), order="bgr", size=224),
        Preprocess("torch", 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), size=224),
        Preprocess("symmetric", 1 / 127.5, (1.0, 1.0, 1.0)),
        Preprocess("unit", 1 / 255, (0.0, 0.0, 0.0)),
    )
}


# How much of red, green and blue is in grey (ITU-R BT.601), as in Pillow.
GREY = np.float32([[0.299], [0.587], [0.114]])


def make_preprocess(spec: Preprocess, size: int | None, dtype=jnp.float32) -> Callable[[jax.Array], jax.Array]:
    """Returns a pure function: uint8 [B, H, W, C] → network input [B, size, size, channels] of `dtype`.

    `size` None keeps the pictures' own size. It runs on the device, inside the compiled step.
    """
    method = {"bilinear": "linear", "bicubic": "cubic"}[spec.interpolation]
    mean, std = (_for_channels(np.float32(values), spec.channels) for values in (spec.mean, spec.std))

    def preprocess(images: jax.Array) -> jax.Array:
        x = images.astype(jnp.float32)
        if size is not None and x.shape[1:3] != (size, size):
            # Resized while still grey where it is grey: a third of the work.
            x = jax.image.resize(x, (len(x), size, size, x.shape[-1]), method, antialias=True)
            x = jnp.clip(x, 0, 255)
        if spec.channels == 1 and x.shape[-1] == 3:
            x = x @ GREY
        x = jnp.broadcast_to(x, (*x.shape[:-1], spec.channels))
        x = x[..., ::-1] if spec.order == "bgr" and spec.channels == 3 else x
        return ((x * spec.scale - mean) / std).astype(dtype)

    return preprocess


def _for_channels(values: np.ndarray, channels: int) -> np.ndarray:
    return values.mean(keepdims=True) if channels == 1 else values[np.arange(channels) % 3]
