"""Masks and boxes drawn on an image, with one fixed color per class."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tljax.losses.pixelwise import IGNORED
from tljax.report.style import shorten

# The palette of Okabe and Ito, which is safe for most color vision deficiencies; black for class 0, often background.
FIRST_COLORS = ("000000", "E69F00", "56B4E9", "009E73", "F0E442", "0072B2", "D55E00", "CC79A7")
VOID = (224, 224, 192)  # color of ignored pixels in PASCAL VOC
LUMA = np.array((0.299, 0.587, 0.114))  # weights of red, green and blue, Rec. 601
DARK = 50  # luma below which a color is hard to tell from black
MIN_SIDE = 512  # pixels of the longer side; smaller images are enlarged so that lines and text are legible
BLEND = 0.5  # weight of the class color inside a mask
FONT_SIZE = 15  # pixels


@functools.cache
def _color_table() -> np.ndarray:
    """Return the colors of classes 0 to 254 and of `IGNORED`, uint8 [256, 3]."""
    voc = np.zeros((256, 3), int)
    index = np.arange(256)
    for bit in range(8):
        for channel in range(3):
            voc[:, channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
    # Dark colors come last, because they are hard to tell from black.
    order = np.argsort(voc[1:255] @ LUMA < DARK, kind="stable") + 1
    first = np.array([tuple(bytes.fromhex(color)) for color in FIRST_COLORS])
    return np.concatenate([first, voc[order][: 255 - len(first)], [VOID]]).astype(np.uint8)


def palette(n: int) -> np.ndarray:
    """Return the colors of the first n classes (at most 255), uint8 [n, 3].

    The eight colors of Okabe and Ito come first, then those of the PASCAL VOC color map, which spreads the bits of the
    class index over red, green and blue, the dark ones last. The color of a class does not depend on n.
    """
    return _color_table()[:n]


def colorize(classes: np.ndarray | int) -> np.ndarray:
    """Return the colors of class indices [...], uint8 [..., 3]; `IGNORED` gets a pale color."""
    return _color_table()[classes]


def rgb(image: np.ndarray) -> np.ndarray:
    """Return an image uint8 [H, W, 1 or 3] as [H, W, 3]."""
    return np.broadcast_to(image, (*image.shape[:2], 3))


def mask_overlay(image: np.ndarray, classes: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Tint an image by the classes of its pixels, draw their contours, and append a legend of the classes present.

    Args:
      image: uint8 [H, W, 1 or 3].
      classes: uint8 [H, W]; `IGNORED` is not tinted.
      names: class names.

    Returns:
      uint8 [k H + legend, k W, 3]; a small image is enlarged k times.
    """
    k = _scale(image)
    enlarged = _enlarge(rgb(image), k)
    classes_enlarged = _enlarge(classes, k)
    colors = colorize(classes_enlarged)
    alpha = np.where(contours(classes_enlarged), 1.0, BLEND) * (classes_enlarged != IGNORED)
    tinted = np.round(enlarged + alpha[..., None] * (colors - enlarged.astype(float))).astype(np.uint8)
    present = [int(c) for c in np.unique(classes) if c != IGNORED]
    return np.concatenate([tinted, _legend(present, names, tinted.shape[1])])


def save_png(image: np.ndarray, path: Path) -> None:
    """Write an image uint8 [H, W, 3] as PNG, creating the parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def save_mask_png(classes: np.ndarray, path: str | Path) -> Path:
    """Write class indices uint8 [H, W] as an indexed PNG with the class colors as its palette; return `path`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.fromarray(np.ascontiguousarray(classes))
    mask.putpalette(_color_table().tobytes())
    mask.save(path, format="PNG")
    return path


def box_overlay(
    image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray | None, names: Sequence[str]
) -> np.ndarray:
    """Draw boxes on an image in the colors of their classes, each with its class name and score.

    Args:
      image: uint8 [H, W, 1 or 3].
      boxes: [M, 4], (y0, x0, y1, x1) in pixels of the image.
      labels: [M], class indices; negative for padding.
      scores: [M], or None for ground truth.
      names: class names.

    Returns:
      uint8 [k H, k W, 3]; a small image is enlarged k times.
    """
    k = _scale(image)
    canvas = Image.fromarray(_enlarge(rgb(image), k))
    draw = ImageDraw.Draw(canvas)
    # The highest scores are drawn last, so on top, and all text above all lines.
    order = np.arange(len(labels))[::-1] if scores is None else np.argsort(scores, kind="stable")
    order = [i for i in order if labels[i] >= 0]
    scaled = np.asarray(boxes, float) * k
    colors = colorize(np.maximum(labels, 0))
    for i in order:
        _draw_box(draw, scaled[i], colors[i])
    for i in order:
        y0, x0 = scaled[i, :2]
        text = _short_name(names[int(labels[i])]) + ("" if scores is None else f" {scores[i]:.2f}")
        _draw_tag(draw, text, x0, y0, colors[i], canvas.width)
    return np.asarray(canvas)


def _draw_box(draw: ImageDraw.ImageDraw, box: np.ndarray, color: np.ndarray) -> None:
    """Draw an outline inside a box: white outside, so that dark colors are visible on dark images."""
    y0, x0, y1, x1 = box
    for outline, inset, width in (("white", 0, 1), (tuple(color.tolist()), 1, 2)):
        top_left = (x0 + inset, y0 + inset)
        bottom_right = (x1 - 1 - inset, y1 - 1 - inset)  # the last pixel that the box covers
        draw.rectangle((*top_left, *np.maximum(top_left, bottom_right)), outline=outline, width=width)


def _draw_tag(draw: ImageDraw.ImageDraw, text: str, x0: float, y0: float, color: np.ndarray, image_width: int) -> None:
    """Draw text above the top left corner of a box, or inside the box at the top edge, never beyond the sides."""
    font = _font()
    width = math.ceil(draw.textlength(text, font)) + 6
    height = FONT_SIZE + 4
    left = max(0, min(x0, image_width - width))
    top = max(0, y0 - height if y0 >= height else y0)
    draw.rectangle((left, top, left + width, top + height), fill=tuple(color.tolist()))
    draw.text((left + 3, top + 1), text, fill=_text_color(color), font=font)


def contours(classes: np.ndarray) -> np.ndarray:
    """Return which pixels of a mask [H, W] have a 4-neighbor of another class, bool [H, W]."""
    edges = np.zeros(classes.shape, bool)
    for axis in (0, 1):
        edges_view = np.moveaxis(edges, axis, 0)
        classes_view = np.moveaxis(classes, axis, 0)
        differ = classes_view[1:] != classes_view[:-1]
        edges_view[1:] |= differ
        edges_view[:-1] |= differ
    return edges


def _legend(classes: Sequence[int], names: Sequence[str], width: int) -> np.ndarray:
    """Return color swatches with the names of `classes`, wrapped into lines, uint8 [height, width, 3] on white."""
    font = _font()
    line_height = FONT_SIZE + 9
    gap = 16
    name_widths = [math.ceil(font.getlength(_short_name(names[c]))) for c in classes]
    positions = []
    x = gap // 2
    y = 0
    for name_width in name_widths:
        if x > gap and x + FONT_SIZE + 6 + name_width > width:
            x = gap // 2
            y += line_height
        positions.append((x, y))
        x += FONT_SIZE + 6 + name_width + gap
    strip = Image.new("RGB", (width, y + line_height if classes else 0), "white")
    draw = ImageDraw.Draw(strip)
    for c, (x, y) in zip(classes, positions, strict=True):
        draw.rectangle((x, y + 4, x + FONT_SIZE, y + 4 + FONT_SIZE), fill=tuple(colorize(c).tolist()))
        draw.text((x + FONT_SIZE + 6, y + 3), _short_name(names[c]), fill="black", font=font)
    return np.asarray(strip).reshape(-1, width, 3)


def _short_name(name: str) -> str:
    """Shorten a name as `short` does, without its escapes: Pillow knows no formulas."""
    return shorten(name, 20).replace(r"\$", "$")


def _text_color(background: np.ndarray) -> str:
    return "black" if background @ LUMA > 140 else "white"


def _scale(image: np.ndarray) -> int:
    """Return the factor by which an image is enlarged to at least `MIN_SIDE`."""
    return max(1, -(-MIN_SIDE // max(image.shape[:2])))


def _enlarge(x: np.ndarray, k: int) -> np.ndarray:
    return x.repeat(k, 0).repeat(k, 1)


@functools.cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(FONT_SIZE)
