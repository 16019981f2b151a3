"""Pixel weights that depend only on the labels. Computed once, on the host."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
from scipy import ndimage

from tljax.losses.pixelwise import IGNORED

BACKGROUND = 0
# A smaller term does not change a weight of 1 in float32.
NEGLIGIBLE = 2.0**-25


def boundary_weights(labels: np.ndarray, w0: float = 10.0, sigma: float = 5.0) -> np.ndarray:
    """Return extra weights for pixels in gaps between objects: w0 exp(-(d1 + d2)² / (2 sigma²)).

    The second term of equation 2 of Ronneberger et al. 2015, arXiv:1505.04597, with its w0 and sigma; the first term is
    the class weight. d1 and d2 are the distances in pixels to the borders of the nearest and the second nearest object.
    An object is a 4-connected region of one class other than 0, the background. Its border is the set of its pixels
    with a 4-neighbor outside of it.

    Args:
      labels: uint8 [N, H, W]; pixels of 255 belong to no object.
      w0: the weight where two objects touch.
      sigma: in pixels.

    Returns:
      float32 [N, H, W], 0 where there are fewer than two objects, or none near enough to matter.
    """
    max_distance = math.ceil(sigma * math.sqrt(2 * math.log(max(w0 / NEGLIGIBLE, 1.0))))
    weights = np.empty(labels.shape, np.float32)
    for index, mask in enumerate(labels):
        first, second = _two_nearest_distances(mask, max_distance)
        weights[index] = w0 * np.exp(-((first + second) ** 2) / (2 * sigma**2))
    return weights


def _two_nearest_distances(mask: np.ndarray, max_distance: int) -> tuple[np.ndarray, np.ndarray]:
    """Return distances [H, W] to the borders of the nearest two objects.

    Distances above `max_distance` may be infinite.
    """
    first, second = np.full((2, *mask.shape), np.inf)
    for class_index in np.setdiff1d(mask, (BACKGROUND, IGNORED)):
        objects, _ = cast(tuple[np.ndarray, int], ndimage.label(mask == class_index))
        for index, box in enumerate(ndimage.find_objects(objects), start=1):
            window = tuple(slice(max(side.start - max_distance, 0), side.stop + max_distance) for side in box)
            inside = objects[window] == index
            # border_value=1: the edge of the image is no border of the object.
            border = inside & np.logical_not(ndimage.binary_erosion(inside, border_value=1))
            if not border.any():  # the object fills the whole image
                continue
            distance = ndimage.distance_transform_edt(~border)
            second[window] = np.minimum(second[window], np.maximum(first[window], distance))
            first[window] = np.minimum(first[window], distance)
    return first, second
