"""Masks and boxes drawn on a picture, in one colour for each class everywhere."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tljax.losses.pixelwise import IGNORED
from tljax.report.style import short

# Okabe and Ito's colours, which most colour-blind people tell apart, black for class 0, which often is the background.
FIRST = ("000000", "E69F00", "56B4E9", "009E73", "F0E442", "0072B2", "D55E00", "CC79A7")
VOID = (224, 224, 192)  # what PASCAL VOC shows where nothing counts
LUMA = np.array((0.299, 0.587, 0.114))  # of Rec. 601
DARK = 50
SIDE = 512  # pixels of the longer side that lines and text need
BLEND = 0.5
FONT = 15  # pixels


@functools.cache
def _colors() -> np.ndarray:
    """Of classes 0 to 254 and `IGNORED`, uint8 [256, 3]."""
    voc, index = np.zeros((256, 3), int), np.arange(256)
    for place in range(8):
        for channel in range(3):
            voc[:, channel] |= (index >> (3 * place + channel) & 1) << (7 - place)
    # Those that are hard to tell from black come last.
    order = np.argsort(voc[1:255] @ LUMA < DARK, kind="stable") + 1
    first = np.array([tuple(bytes.fromhex(colour)) for colour in FIRST])
    return np.concatenate([first, voc[order][: 255 - len(first)], [VOID]]).astype(np.uint8)


def palette(n: int) -> np.ndarray:
    """Colours of n classes, uint8 [n, 3]; that of a class does not depend on n, and there are 255.

    Okabe and Ito's eight come first, then those of PASCAL VOC's colour map, which spreads the bits of an index over
    red, green and blue, the dark ones last.
    """
    return _colors()[:n]


def colorize(classes: np.ndarray) -> np.ndarray:
    """The colours of classes [...], uint8 [..., 3]; `IGNORED` is pale."""
    return _colors()[classes]


def rgb(image: np.ndarray) -> np.ndarray:
    """A picture uint8 [H, W, 1 or 3] as [H, W, 3]."""
    return np.broadcast_to(image, (*image.shape[:2], 3))


def mask_overlay(image: np.ndarray, classes: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """The picture tinted by the classes of its pixels, with contours, above a legend of the classes that appear.

    Args:
      image: uint8 [H, W, 1 or 3].
      classes: uint8 [H, W]; `IGNORED` is left untinted.
      names: of the classes.

    Returns:
      uint8 [k H + legend, k W, 3], a small picture enlarged k times.
    """
    k = _factor(image)
    picture, kinds = _enlarge(rgb(image), k), _enlarge(classes, k)
    colours = colorize(kinds)
    share = np.where(contours(kinds), 1.0, BLEND) * (kinds != IGNORED)
    tinted = np.round(picture + share[..., None] * (colours - picture.astype(float))).astype(np.uint8)
    seen = [int(kind) for kind in np.unique(classes) if kind != IGNORED]
    return np.concatenate([tinted, _legend(seen, names, tinted.shape[1])])


def save(image: np.ndarray, path: Path) -> None:
    """Writes uint8 [H, W, 3] as a PNG and makes the folder that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def mask_png(classes: np.ndarray, path: str | Path) -> Path:
    """Write classes uint8 [H, W] as PNG whose pixels are the classes and whose palette shows them; returns `path`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.ascontiguousarray(classes))
    picture.putpalette(_colors().tobytes())
    picture.save(path, format="PNG")
    return path


def box_overlay(
    image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray | None, names: Sequence[str]
) -> np.ndarray:
    """The picture with boxes in the colours of their classes, each with its class and score.

    Args:
      image: uint8 [H, W, 1 or 3].
      boxes: [M, 4], in pixels of the picture.
      labels: [M]; those that are negative are padding.
      scores: [M]; None: the boxes are true.
      names: of the classes.

    Returns:
      uint8 [k H, k W, 3], a small picture enlarged k times.
    """
    k, font = _factor(image), _font()
    picture = Image.fromarray(_enlarge(rgb(image), k))
    draw = ImageDraw.Draw(picture)
    # The best are drawn last, on top, and all text above all lines.
    order = np.arange(len(labels))[::-1] if scores is None else np.argsort(scores, kind="stable")
    order = [i for i in order if labels[i] >= 0]
    places, colours = np.asarray(boxes, float) * k, colorize(np.maximum(labels, 0))
    for i in order:
        y0, x0, y1, x1 = places[i]
        # Lines lie inside of the box, white outside so that dark ones show; the far corner is the last pixel covered.
        for colour, inset, width in (("white", 0, 1), (tuple(colours[i].tolist()), 1, 2)):
            near, far = (x0 + inset, y0 + inset), (x1 - 1 - inset, y1 - 1 - inset)
            draw.rectangle((*near, *np.maximum(near, far)), outline=colour, width=width)
    for i in order:
        y0, x0 = places[i, :2]
        text = _cut(names[labels[i]]) + ("" if scores is None else f" {scores[i]:.2f}")
        wide, high = math.ceil(draw.textlength(text, font)) + 6, FONT + 4
        # Above the box where there is room, else inside of it; never beyond the sides.
        left, top = max(0, min(x0, picture.width - wide)), max(0, y0 - high if y0 >= high else y0)
        draw.rectangle((left, top, left + wide, top + high), fill=tuple(colours[i].tolist()))
        draw.text((left + 3, top + 1), text, fill=_ink(colours[i]), font=font)
    return np.asarray(picture)


def contours(classes: np.ndarray) -> np.ndarray:
    """Which pixels [H, W] have a 4-neighbour of another class."""
    off = np.zeros(classes.shape, bool)
    for axis in (0, 1):
        moved = np.moveaxis(off, axis, 0)
        kinds = np.moveaxis(classes, axis, 0)
        differ = kinds[1:] != kinds[:-1]
        moved[1:] |= differ
        moved[:-1] |= differ
    return off


def _legend(seen: Sequence[int], names: Sequence[str], width: int) -> np.ndarray:
    """Swatches and names of classes in lines, uint8 [height, width, 3], white."""
    font, line, gap = _font(), FONT + 9, 16
    lengths = [math.ceil(font.getlength(_cut(names[kind]))) for kind in seen]
    places, x, y = [], gap // 2, 0
    for length in lengths:
        if x > gap and x + FONT + 6 + length > width:
            x, y = gap // 2, y + line
        places.append((x, y))
        x += FONT + 6 + length + gap
    strip = Image.new("RGB", (width, y + line if seen else 0), "white")
    draw = ImageDraw.Draw(strip)
    for kind, (x, y) in zip(seen, places, strict=True):
        draw.rectangle((x, y + 4, x + FONT, y + 4 + FONT), fill=tuple(colorize(kind).tolist()))
        draw.text((x + FONT + 6, y + 3), _cut(names[kind]), fill="black", font=font)
    return np.asarray(strip).reshape(-1, width, 3)


def _cut(name: str) -> str:
    """`short` for text in which a dollar starts nothing."""
    return short(name, 20).replace(r"\$", "$")


def _ink(colour: np.ndarray) -> str:
    """Black or white, whichever shows on the colour."""
    return "black" if colour @ LUMA > 140 else "white"


def _factor(image: np.ndarray) -> int:
    return max(1, -(-SIDE // max(image.shape[:2])))


def _enlarge(x: np.ndarray, k: int) -> np.ndarray:
    return x.repeat(k, 0).repeat(k, 1)


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(FONT)
