"""Backgrounds of scenes, and colours that stand out from them; colours are floats in 0..1."""

from __future__ import annotations

import numpy as np
from PIL import Image

CANDIDATES = 16


def background(rng: np.random.Generator, side: int, channels: int, strength: float, ends=(0, 1)) -> np.ndarray:
    """A canvas [S, S, C] between two random colours within `ends`; `strength` scales how far they are apart.

    Which of the two shows where is a smooth noise, a gradient, or stripes, at random.
    """
    pattern = rng.choice([_noise, _gradient, _stripes])(rng, side)[..., None]
    first, second = rng.uniform(*ends, (2, channels))
    return first + strength * pattern * (second - first)


def contrasting_color(
    rng: np.random.Generator, canvas: np.ndarray, coverage: np.ndarray, min_distance: float, ends=(0, 1)
) -> np.ndarray:
    """A random colour [C] within `ends`, at least `least` away from the mean of the canvas [h, w, C] that it covers.

    The distance is the root mean square over channels. Where no candidate is so far away, the farthest is taken.
    """
    mean = np.average(canvas, axis=(0, 1), weights=coverage)
    candidates = rng.uniform(*ends, (CANDIDATES, canvas.shape[-1]))
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
    waves, phase = rng.uniform(2, 8), rng.uniform(0, 2 * np.pi)
    return 0.5 + 0.5 * np.sin(2 * np.pi * waves * _ramp(rng, side) + phase)


def _ramp(rng: np.random.Generator, side: int) -> np.ndarray:
    """[S, S], a plane that rises by 1 over a side's length in a random direction."""
    angle, along = rng.uniform(0, 2 * np.pi), np.arange(side) / side
    return np.cos(angle) * along[:, None] + np.sin(angle) * along
