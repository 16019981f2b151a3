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
    """

    name: str
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    order: str = "rgb"
    size: int | None = None
    interpolation: str = "bilinear"

    @classmethod
    def from_dict(cls, fields: Mapping) -> Preprocess:
        """Reads what result.json holds."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


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


def make_preprocess(spec: Preprocess, size: int | None, dtype=jnp.float32) -> Callable[[jax.Array], jax.Array]:
    """Returns a pure function: uint8 [B, H, W, 1 or 3] → network input [B, size, size, 3] of `dtype`.

    `size` None keeps the pictures' own size. It runs on the device, inside the compiled step.
    """
    method = {"bilinear": "linear", "bicubic": "cubic"}[spec.interpolation]
    mean, std = np.float32(spec.mean), np.float32(spec.std)

    def preprocess(images: jax.Array) -> jax.Array:
        x = images.astype(jnp.float32)
        if size is not None and x.shape[1:3] != (size, size):
            # Resized while still grey where it is grey: a third of the work.
            x = jax.image.resize(x, (len(x), size, size, x.shape[-1]), method, antialias=True)
            x = jnp.clip(x, 0, 255)
        x = jnp.broadcast_to(x, (*x.shape[:-1], 3))
        x = x[..., ::-1] if spec.order == "bgr" else x
        return ((x * spec.scale - mean) / std).astype(dtype)

    return preprocess
