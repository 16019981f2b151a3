"""Image and mask files as arrays of their stored pixels.

The EXIF orientation is not applied, because annotations refer to stored pixels. Transparent pixels are blended with
white, 16-bit images are scaled to 8 bits, and the first frame of an animation is read.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from PIL import Image

from tljax.data.dataset import IGNORED
from tljax.errors import UserError

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_PIL_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_MODES_16_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")


def read_image(path: Path) -> np.ndarray:
    """Read an image file: uint8 [H, W, 1] if it is grayscale, else [H, W, 3]. Raises UserError naming the file."""
    return image_to_array(_open(path), str(path))


def image_to_array(image: Image.Image, origin: str) -> np.ndarray:
    """Convert a PIL image.

    Args:
      image: any mode but floating point.
      origin: start of error messages, for instance the file.

    Returns:
      uint8 [H, W, 1] of a grayscale image, else [H, W, 3].
    """
    if image.mode in _MODES_16_BIT:
        pixels = np.asarray(image).astype(np.int64)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise UserError(f"{origin} has values {pixels.min()}..{pixels.max()}, beyond 16 bits.")
        # 65535 / 257 = 255: white stays white.
        return np.round(pixels / 257).astype(np.uint8)[..., None]
    if image.mode == "F":
        raise UserError(f"{origin} has floating-point pixels, whose range is unknown: save it with 8 or 16 bits.")
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    try:
        if image.has_transparency_data:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        return np.atleast_3d(np.asarray(image.convert(mode)))
    except _PIL_ERRORS as error:
        raise UserError(f"{origin} cannot be read as an image: {error}.") from error


def read_mask(path: Path) -> np.ndarray:
    """Read a file of one channel: uint8 [H, W], palette indices if it has one. Raises UserError naming the file."""
    image = _open(path)
    if image.format == "JPEG":
        raise UserError(f"{path} cannot be a mask: JPEG changes pixel values; save masks as PNG.")
    if image.mode not in ("1", "L", "P", *_MODES_16_BIT):
        raise UserError(f"{path} cannot be a mask: it has channels {image.mode}; a mask has one, of class numbers.")
    values = np.asarray(image)
    if values.min() < 0 or values.max() > IGNORED:
        raise UserError(f"{path} cannot be a mask: it has values {values.min()}..{values.max()}, beyond 0..{IGNORED}.")
    return values.astype(np.uint8)


def check_mask(mask: np.ndarray, image: np.ndarray, num_classes: int | None, origin: str) -> np.ndarray:
    """Return the mask if it has the size of the image and valid values, else raise UserError.

    Args:
      mask: uint8 [H, W].
      image: [H, W, C].
      num_classes: valid values are 0..num_classes - 1 and `IGNORED`; None: any.
      origin: start of error messages, for instance the file.
    """
    if mask.shape != image.shape[:2]:
        raise UserError(f"{origin} is {_size_text(mask)} pixels, its image {_size_text(image)}.")
    if num_classes is not None and (invalid := mask[(mask >= num_classes) & (mask != IGNORED)]).size:
        raise UserError(
            f"{origin} has the value {invalid[0]}, but the classes are 0..{num_classes - 1}, and {IGNORED} is ignored."
        )
    return mask


def resize(image: np.ndarray, size: tuple[int, int], filter: Image.Resampling = Image.Resampling.BILINEAR):
    """Resize uint8 [H, W] or [H, W, C] to `size`, (height, width), with one of PIL's antialiased filters."""
    if image.shape[:2] == size:
        return image
    squeezed = image[..., 0] if image.shape[2:] == (1,) else image
    resized = np.asarray(Image.fromarray(squeezed).resize(size[::-1], filter))
    return resized.reshape(*size, *image.shape[2:])


def _open(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
        return image
    except FileNotFoundError as error:
        raise UserError(f"There is no image {path}.") from error
    except _PIL_ERRORS as error:
        raise UserError(f"{path} cannot be read as an image: {str(error).rstrip('.')}.") from error


def _size_text(array: np.ndarray) -> str:
    return f"{array.shape[1]}×{array.shape[0]}"
