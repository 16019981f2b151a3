"""Random backgrounds of synthetic scenes, and colors that contrast with them; colors are floats in 0..1."""

from __future__ import annotations

import numpy as np
from PIL import Image

_NUM_CANDIDATES = 16


def background(
    rng: np.random.Generator, side: int, channels: int, strength: float, color_range: tuple[float, float] = (0, 1)
) -> np.ndarray:
    """Return a canvas [S, S, C] that blends two random colors by smooth noise, a gradient or stripes.

    Args:
      rng: random generator.
      side: S.
      channels: C.
      strength: scales the difference between the two colors.
      color_range: min and max of the colors.
    """
    pattern = rng.choice([_noise, _gradient, _stripes])(rng, side)[..., None]
    first, second = rng.uniform(*color_range, (2, channels))
    return first + strength * pattern * (second - first)


def contrasting_color(
    rng: np.random.Generator,
    canvas: np.ndarray,
    coverage: np.ndarray,
    min_distance: float,
    color_range: tuple[float, float] = (0, 1),
) -> np.ndarray:
    """Return a random color [C] that is far from the mean color that an object covers.

    The distance is the root mean square over channels. If no candidate is far enough, the farthest is returned.

    Args:
      rng: random generator.
      canvas: [h, w, C].
      coverage: share of each pixel that the object covers, [h, w].
      min_distance: minimum distance.
      color_range: min and max of the color.
    """
    mean = np.average(canvas, axis=(0, 1), weights=coverage)
    candidates = rng.uniform(*color_range, (_NUM_CANDIDATES, canvas.shape[-1]))
    distances = np.sqrt(np.square(candidates - mean).mean(-1))
    far = np.flatnonzero(distances >= min_distance)
    return candidates[far[0] if len(far) else distances.argmax()]


def _noise(rng: np.random.Generator, side: int) -> np.ndarray:
    cells = rng.integers(3, 9)
    grid = Image.fromarray(rng.uniform(0, 1, (cells, cells)).astype(np.float32))
    return np.clip(np.asarray(grid.resize((side, side), Image.Resampling.BICUBIC)), 0, 1)


def _gradient(rng: np.random.Generator, side: int) -> np.ndarray:
    ramp = _ramp(rng, side)
    return (ramp - ramp.min()) / np.ptp(ramp)


def _stripes(rng: np.random.Generator, side: int) -> np.ndarray:
    waves = rng.uniform(2, 8)
    phase = rng.uniform(0, 2 * np.pi)
    return 0.5 + 0.5 * np.sin(2 * np.pi * waves * _ramp(rng, side) + phase)


def _ramp(rng: np.random.Generator, side: int) -> np.ndarray:
    """Return a plane [S, S] that rises by 1 over the length of a side, in a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    position = np.arange(side) / side
    return np.cos(angle) * position[:, None] + np.sin(angle) * position
