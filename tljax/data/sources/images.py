"""Image and mask files as arrays: `image_to_array` decides how an image of any mode becomes uint8.

Transparent pixels are blended with a background color, 16-bit images are scaled to 8 bits, and the first frame of an
animation is read. `read_image` returns the stored pixels, without the EXIF orientation, as masks and boxes refer to
them. `ImageFormat.read` applies the orientation and returns squares of one size.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageColor

from tljax.data.dataset import IGNORED
from tljax.errors import UserError

Result = TypeVar("Result")

IMAGE_SUFFIXES = (
    ".avif",
    ".bmp",
    ".gif",
    ".jfif",
    ".jpeg",
    ".jpg",
    ".pgm",
    ".png",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)
RESIZE_MODES = ("crop", "pad", "stretch")
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_PIL_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_MODES_16_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_GRAY_MODES = ("1", "L", "LA", "La", *_MODES_16_BIT)
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclasses.dataclass(frozen=True)
class ImageFormat:
    """How a file becomes a square image of one size.

    Attributes:
      side: height and width of the image, in pixels.
      resize: "crop": the shorter side is resized to `side`, and the center is taken; "pad": the longer side is resized
        to `side`, and the background is added on both sides of the shorter one; "stretch": both sides are resized.
      interpolation: "bilinear" or "bicubic", both with antialiasing.
      background: color of transparent pixels and of padding: "white", "black" or "#rrggbb".
    """

    side: int
    resize: str = "crop"
    interpolation: str = "bilinear"
    background: str = "white"

    def read(self, path: Path) -> np.ndarray:
        """Read an image file with its EXIF orientation: uint8 [side, side, 1] if it is grayscale, else [side, side, 3].

        Large JPEG files are decoded at a half, a quarter or an eighth of their size where that is enough.

        Raises:
          UserError: the file is missing or not an image; the message names it.
        """
        image = _open(path)
        scale = self._scale(image.height, image.width)
        decoded = _decode(image, path, (round(image.height * scale), round(image.width * scale)))
        pixels = image_to_array(decoded, str(path), self.background)
        return self.fit(_apply_orientation(pixels, image))

    def fit(self, image: np.ndarray) -> np.ndarray:
        """Return uint8 [H, W, C] as a square [side, side, C]; padding of a gray image in color has three channels."""
        height, width = image.shape[:2]
        filter = FILTERS[self.interpolation]
        if self.resize == "stretch":
            return resize(image, (self.side, self.side), filter)
        if self.resize == "crop":
            short = min(height, width)
            left, top = (width - short) / 2, (height - short) / 2
            return resize(image, (self.side, self.side), filter, (left, top, left + short, top + short))
        scale = self._scale(height, width)
        height, width = (max(1, round(n * scale)) for n in (height, width))
        color = np.array(ImageColor.getrgb(self.background), np.uint8)
        color = color[:1] if image.shape[-1] == 1 and is_gray_color(self.background) else color
        padded = np.empty((self.side, self.side, len(color)), np.uint8)
        padded[:] = color
        top, left = round((self.side - height) / 2), round((self.side - width) / 2)
        padded[top : top + height, left : left + width] = resize(image, (height, width), filter)
        return padded

    def is_gray(self, path: Path) -> bool:
        """Return whether `read` gives one channel; True for a file that is not an image. Only the header is read."""
        try:
            with Image.open(path) as image:
                return _is_gray(image, self.background) and (self.resize != "pad" or is_gray_color(self.background))
        except _PIL_ERRORS:
            return True

    def _scale(self, height: int, width: int) -> float:
        """Return the factor from an image's size to the resized one; of "stretch" the larger of both."""
        return self.side / (max(height, width) if self.resize == "pad" else min(height, width))


class ImageHeader(NamedTuple):
    """What the header of an image file says.

    Attributes:
      width: in pixels, with the EXIF orientation applied.
      height: likewise.
      kind: format and mode, such as "PNG RGBA".
      transparent: whether pixels may be transparent.
      orientation: of EXIF, 1 to 8; 1: as stored.
    """

    width: int
    height: int
    kind: str
    transparent: bool
    orientation: int


def read_header(path: Path) -> ImageHeader:
    """Read the header of an image file. Raises UserError naming the file."""
    with _open(path) as image:
        orientation = _orientation(image)
        width, height = image.size if orientation < 5 else image.size[::-1]
        kind = f"{image.format} {image.mode}"
        return ImageHeader(width, height, kind, image.has_transparency_data, orientation)


def is_gray_color(color: str) -> bool:
    """Return whether the three channels of a color are equal."""
    return len(set(ImageColor.getrgb(color))) == 1


def read_image(path: Path, background: str = "white", oriented: bool = False) -> np.ndarray:
    """Read an image file at full size: uint8 [H, W, 1] if it is grayscale, else [H, W, 3].

    Args:
      path: of the file.
      background: color that transparent pixels are blended with.
      oriented: whether the EXIF orientation is applied; otherwise pixels are as stored.

    Raises:
      UserError: the file is missing or not an image; the message names it.
    """
    image = _load(_open(path), path)
    pixels = image_to_array(image, str(path), background)
    return _apply_orientation(pixels, image) if oriented else pixels


def image_to_array(image: Image.Image, origin: str, background: str = "white") -> np.ndarray:
    """Convert a PIL image.

    Args:
      image: any mode but floating point.
      origin: start of error messages, for instance the file.
      background: color that transparent pixels are blended with.

    Returns:
      uint8 [H, W, 1] of a grayscale image, unless it has transparent pixels on a colored background; else [H, W, 3].

    Raises:
      UserError: the pixels have no known range, or cannot be decoded.
    """
    if image.mode in _MODES_16_BIT:
        pixels = np.asarray(image).astype(np.int64)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise UserError(f"{origin} has values {pixels.min()}..{pixels.max()}, beyond 16 bits.")
        # 65535 / 257 = 255: white stays white.
        return np.round(pixels / 257).astype(np.uint8)[..., None]
    if image.mode == "F":
        raise UserError(f"{origin} has floating-point pixels, whose range is unknown: save it with 8 or 16 bits.")
    mode = "L" if _is_gray(image, background) else "RGB"
    try:
        if image.has_transparency_data:
            canvas = Image.new("RGBA", image.size, background)
            image = Image.alpha_composite(canvas, image.convert("RGBA"))
        return np.atleast_3d(np.asarray(image.convert(mode)))
    except _PIL_ERRORS as error:
        raise UserError(f"{origin} cannot be read as an image: {error}.") from error


def read_mask(path: Path) -> np.ndarray:
    """Read a file of one channel: uint8 [H, W], palette indices if it has one. Raises UserError naming the file."""
    image = _load(_open(path), path)
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


def resize(
    image: np.ndarray,
    size: tuple[int, int],
    filter: Image.Resampling = Image.Resampling.BILINEAR,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """Resize an image, or a part of it, with one of PIL's antialiased filters.

    Args:
      image: uint8 [H, W] or [H, W, C].
      size: height and width of the result, in pixels.
      filter: of PIL.
      box: part of the image, (left, top, right, bottom) in pixels; None: all of it.
    """
    if image.shape[:2] == size and box in (None, (0, 0, size[1], size[0])):
        return image
    squeezed = image[..., 0] if image.shape[2:] == (1,) else image
    resized = np.asarray(Image.fromarray(squeezed).resize((size[1], size[0]), filter, box))
    return resized.reshape(*size, *image.shape[2:])


def _decode(image: Image.Image, path: Path, min_size: tuple[int, int]) -> Image.Image:
    """Return the decoded pixels of an opened image; a baseline JPEG may be smaller, but has at least `min_size`."""
    is_baseline = image.format == "JPEG" and image.mode in ("L", "RGB") and not image.info.get("progressive")
    if is_baseline:
        space = "GRAY" if image.mode == "L" else "RGB"
        try:
            data = path.read_bytes()
            pixels = simplejpeg.decode_jpeg(data, space, min_height=min_size[0], min_width=min_size[1])
            return Image.fromarray(pixels[..., 0] if image.mode == "L" else pixels)
        except (OSError, ValueError):
            pass  # stray bytes between markers, for instance, which Pillow tolerates
    return _load(image, path)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an opened image, 1 to 8."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _PIL_ERRORS:
        return 1  # a broken EXIF block
    return orientation if orientation in _TRANSPOSE else 1


def _apply_orientation(pixels: np.ndarray, image: Image.Image) -> np.ndarray:
    """Return decoded pixels [H, W, C] as the EXIF orientation of the image file shows them."""
    method = _TRANSPOSE.get(_orientation(image))
    if method is None:
        return pixels
    squeezed = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    return np.atleast_3d(np.asarray(Image.fromarray(squeezed).transpose(method)))


def _is_gray(image: Image.Image, background: str) -> bool:
    """Return whether `image_to_array` gives one channel; the image need not be decoded."""
    return image.mode in _GRAY_MODES and (is_gray_color(background) or not image.has_transparency_data)


def _open(path: Path) -> Image.Image:
    """Open an image file and read its header."""
    return _report_errors(lambda: Image.open(path), path)


def _load(image: Image.Image, path: Path) -> Image.Image:
    """Decode an opened image."""
    _report_errors(image.load, path)
    return image


def _report_errors(read: Callable[[], Result], path: Path) -> Result:
    """Return `read()`; raise UserError naming the file if it fails."""
    try:
        return read()
    except FileNotFoundError as error:
        raise UserError(f"There is no image {path}.") from error
    except _PIL_ERRORS as error:
        raise UserError(f"{path} cannot be read as an image: {str(error).rstrip('.')}.") from error


def _size_text(array: np.ndarray) -> str:
    return f"{array.shape[1]}×{array.shape[0]}"
