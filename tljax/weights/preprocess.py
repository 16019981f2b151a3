"""Preprocessing of pretrained weights: size, interpolation, channel order, scale, mean and standard deviation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Conversion of an image to network input: `(image · scale - mean) / std`, in channel order `order`.

    Attributes:
      name: name for `model.preprocess`.
      scale: factor on image values in 0..255.
      mean: subtracted after scaling, in channel order `order`.
      std: divisor, in channel order `order`.
      order: "rgb" or "bgr".
      size: side at which the weights were trained, in pixels; None: the size of the data.
      interpolation: "bilinear" or "bicubic", both with antialiasing and half-pixel centers.
      channels: number of input channels. With one, color images are converted to grayscale, and mean and std are
        averaged over the three channels. With more than three, mean and std are repeated in turn, as
        `weights.adapt_channels` repeats the first convolution's kernel.
      crop: share of the image's side that the input shows in the publisher's evaluation.
      center_crop: whether the input shows the center of the image, `crop` of each side; else all of it.
    """

    name: str
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    order: str = "rgb"
    size: int | None = None
    interpolation: str = "bilinear"
    channels: int = 3
    crop: float = 1.0
    center_crop: bool = False

    @classmethod
    def from_dict(cls, fields: Mapping) -> Preprocess:
        """Restore a `Preprocess` from its fields in result.json."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return cls(**values)

    @property
    def side(self) -> int:
        """`size`, where it is known, as it is for every network of a run."""
        assert self.size is not None
        return self.size

    @property
    def crop_share(self) -> float:
        """Share of the image's side that the input shows."""
        return self.crop if self.center_crop else 1.0

    def same_values(self, other: Preprocess) -> bool:
        """Return whether image values are converted in the same way; size and interpolation may differ."""
        return all(getattr(self, f) == getattr(other, f) for f in ("scale", "mean", "std", "order"))


PRESETS = {
    p.name: p
    for p in (
        # Keras' VGG and ResNet, from the Caffe models: BGR in 0..255 minus ImageNet's means.
        Preprocess("caffe", 1.0, (103.939, 116.779, 123.68), order="bgr", size=224),
        Preprocess("torch", 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), size=224),
        Preprocess("symmetric", 1 / 127.5, (1.0, 1.0, 1.0)),
        Preprocess("unit", 1 / 255, (0.0, 0.0, 0.0)),
    )
}


def crop_length(length: int, share: float) -> int:
    """Return the number of pixels of a share of `length`; of an input size over the share, rounded up, the input size.

    >>> crop_length(256, 0.875), crop_length(147, 0.875)
    (224, 128)
    """
    return max(1, math.floor(length * share + 1e-6))


# ITU-R BT.601 luma weights, as in Pillow.
RGB_TO_GRAY = np.array([[0.299], [0.587], [0.114]], np.float32)


def make_preprocess(spec: Preprocess, size: int | None, dtype=jnp.float32) -> Callable[[jax.Array], jax.Array]:
    """Return a pure function from uint8 images [B, H, W, C] to network input [B, size, size, channels].

    The function can run inside a compiled step.

    Args:
      spec: the preprocessing.
      size: side of the network input, in pixels; None keeps the size of the images.
      dtype: dtype of the network input.
    """
    method = {"bilinear": "linear", "bicubic": "cubic"}[spec.interpolation]
    mean, std = (_for_channels(np.array(values, np.float32), spec.channels) for values in (spec.mean, spec.std))

    def preprocess(images: jax.Array) -> jax.Array:
        x = _center_crop(images, spec.crop_share).astype(jnp.float32)
        if size is not None and x.shape[1:3] != (size, size):
            # Before gray images are broadcast to three channels: a third of the work.
            x = jax.image.resize(x, (len(x), size, size, x.shape[-1]), method, antialias=True)
            x = jnp.clip(x, 0, 255)
        if spec.channels == 1 and x.shape[-1] == 3:
            x = x @ RGB_TO_GRAY
        x = jnp.broadcast_to(x, (*x.shape[:-1], spec.channels))
        x = x[..., ::-1] if spec.order == "bgr" and spec.channels == 3 else x
        return ((x * spec.scale - mean) / std).astype(dtype)

    return preprocess


def _center_crop(images: jax.Array, share: float) -> jax.Array:
    """Return the center of images [B, H, W, C], `share` of each side."""
    if share == 1:
        return images
    height, width = (crop_length(n, share) for n in images.shape[1:3])
    top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
    return images[:, top : top + height, left : left + width]


def _for_channels(values: np.ndarray, channels: int) -> np.ndarray:
    """Return per-channel values of an RGB image [3] for another number of channels, [channels]."""
    return values.mean(keepdims=True) if channels == 1 else values[np.arange(channels) % 3]
