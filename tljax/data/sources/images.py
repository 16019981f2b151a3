"""Picture and mask files as arrays of their stored pixels.

What annotations say is said of stored pixels, so that an orientation in EXIF data is not applied. What is transparent
is laid over white, as viewers do; 16 bits are scaled to 8; of an animation the first frame counts.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from PIL import Image

from tljax.data.dataset import IGNORED
from tljax.errors import UserError

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_BAD = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_SIXTEEN = ("I;16", "I;16B", "I;16L", "I;16N", "I")


def read_image(path: Path) -> np.ndarray:
    """uint8 [H, W, 1] of a grey file, [H, W, 3] of any other. Raises UserError naming the file."""
    return as_array(_open(path), str(path))


def as_array(image: Image.Image, where: str) -> np.ndarray:
    """uint8 [H, W, 1] of a grey picture, [H, W, 3] of any other. Raises UserError that begins with `where`."""
    if image.mode in _SIXTEEN:
        deep = np.asarray(image).astype(np.int64)
        if deep.min() < 0 or deep.max() > 65535:
            raise UserError(f"{where} has values {deep.min()}..{deep.max()}, which no picture of 16 bits has.")
        # 65535 / 257 = 255: white stays white.
        return np.round(deep / 257).astype(np.uint8)[..., None]
    if image.mode == "F":
        raise UserError(f"{where} has floating-point pixels, whose range is not known: save it with 8 or 16 bits.")
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    try:
        if image.has_transparency_data:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        return np.atleast_3d(np.asarray(image.convert(mode)))
    except _BAD as error:
        raise UserError(f"{where} cannot be read as a picture: {error}.") from error


def read_mask(path: Path) -> np.ndarray:
    """uint8 [H, W], the values of a file of one channel; of a palette, its indices. Raises UserError naming it."""
    picture = _open(path)
    if picture.format == "JPEG":
        raise UserError(f"{path} is no mask: JPEG changes the values of pixels; save masks as PNG.")
    if picture.mode not in ("1", "L", "P", *_SIXTEEN):
        raise UserError(f"{path} is no mask: it has channels {picture.mode}, and a mask has one, of class numbers.")
    values = np.asarray(picture)
    if values.min() < 0 or values.max() > IGNORED:
        raise UserError(f"{path} is no mask: it has values {values.min()}..{values.max()}, beyond 0..{IGNORED}.")
    return values.astype(np.uint8)


def check_mask(mask: np.ndarray, image: np.ndarray, classes: int | None, where: str) -> np.ndarray:
    """The mask, if it has the picture's size and no value beyond the classes and `IGNORED`; else raises UserError."""
    if mask.shape != image.shape[:2]:
        raise UserError(f"{where} is {_size(mask)} pixels, its picture {_size(image)}.")
    if classes is not None and (beyond := mask[(mask >= classes) & (mask != IGNORED)]).size:
        raise UserError(
            f"{where} has the value {beyond[0]}, but the classes are 0..{classes - 1}, and {IGNORED} for none."
        )
    return mask


def resize(image: np.ndarray, size: tuple[int, int], filter: Image.Resampling = Image.Resampling.BILINEAR):
    """uint8 [H, W] or [H, W, C] brought to `size`, (height, width), by one of PIL's antialiased filters."""
    if image.shape[:2] == size:
        return image
    flat = image[..., 0] if image.shape[2:] == (1,) else image
    resized = np.asarray(Image.fromarray(flat).resize(size[::-1], filter))
    return resized.reshape(*size, *image.shape[2:])


def _open(path: Path) -> Image.Image:
    try:
        picture = Image.open(path)
        picture.load()
        return picture
    except FileNotFoundError as error:
        raise UserError(f"There is no picture {path}.") from error
    except _BAD as error:
        raise UserError(f"{path} cannot be read as a picture: {str(error).rstrip('.')}.") from error


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}×{array.shape[0]}"
