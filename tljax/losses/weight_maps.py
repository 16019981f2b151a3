"""Weights of pixels by where they lie, from the labels alone; computed once, on the host."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from tljax.losses.pixelwise import IGNORED

BACKGROUND = 0
# Less than this adds nothing to a weight of one in float32.
NEGLIGIBLE = 2.0**-25


def boundary_weights(labels: np.ndarray, w0: float = 10.0, sigma: float = 5.0) -> np.ndarray:
    """What gaps between objects weigh more than other places: w0 exp(-(d1 + d2)² / (2 sigma²)).

    The second part of equation 2 of Ronneberger et al. 2015, arXiv:1505.04597, with its w0 and sigma; the first is the
    weight of the class. d1 and d2 are the distances in pixels to the borders of the nearest and the second nearest
    object. An object is a 4-connected region of one class other than 0, the background; its border are its pixels
    that have a 4-neighbour outside of it.

    Args:
      labels: uint8 [N, H, W]; pixels of 255 belong to no object.
      w0: the weight where two objects meet.
      sigma: in pixels.

    Returns:
      float32 [N, H, W], 0 where there are fewer than two objects, or none near enough to matter.
    """
    reach = math.ceil(sigma * math.sqrt(2 * math.log(max(w0 / NEGLIGIBLE, 1.0))))
    distances = (_two_nearest(picture, reach) for picture in labels)
    weights = np.empty(labels.shape, np.float32)
    for row, (first, second) in zip(weights, distances, strict=True):
        row[:] = w0 * np.exp(-((first + second) ** 2) / (2 * sigma**2))
    return weights


def _two_nearest(labels: np.ndarray, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances [H, W] to the borders of the nearest two objects, infinite where they may be beyond `reach`."""
    first, second = np.full((2, *labels.shape), np.inf)
    for kind in np.setdiff1d(labels, (BACKGROUND, IGNORED)):
        objects, _ = ndimage.label(labels == kind)
        for index, box in enumerate(ndimage.find_objects(objects), start=1):
            window = tuple(slice(max(side.start - reach, 0), side.stop + reach) for side in box)
            inside = objects[window] == index
            # Outside of the picture is not outside of the object.
            border = inside & ~ndimage.binary_erosion(inside, border_value=1)
            if not border.any():  # it is the whole picture
                continue
            distance = ndimage.distance_transform_edt(~border)
            second[window] = np.minimum(second[window], np.maximum(first[window], distance))
            first[window] = np.minimum(first[window], distance)
    return first, second
