"""Weights, images, labels and subsampling shared by the golden files of the model zoo and the tests that read them.

The files contain no weights. Every tensor is drawn by `draw` from its name in the reference and its shape, so that a
test can create the checkpoint of the reference. Needs only NumPy and scikit-learn (with Pillow).
"""

import functools
import hashlib
import math
import re
import zlib

import numpy as np
from sklearn.datasets import load_sample_image

LABELS = (1, 2)
CORNER = (100, 200)
LARGEST = 299
PHOTO_SHA256 = "66211a66acd61c4443b925a87ee2e30020a532443a4b6a29e91f5471f3c58fce"

# Norms at the end of residual branches. With scales near 1 each block would double the variance of its features.
RESIDUAL = re.compile(r"\.bn3\.weight$|_3_bn/gamma$")

# The first pattern that a name contains gives the range of a uniform distribution.
UNIFORM = (
    (re.compile(r"running_var$|moving_variance$"), (0.5, 1.5)),
    (re.compile(r"layer_scale$|\.gamma$"), (0.1, 0.5)),
    # EfficientNet-Lite: most blocks that end in `bn3` have no shortcut.
    (re.compile(r"^blocks\..*\.bn3\.weight$"), (0.7, 1.1)),
    (RESIDUAL, (0.1, 0.4)),
    (re.compile(r"weight$|/gamma$"), (0.7, 1.1)),
)


@functools.cache
def pools():
    """Return normal and uniform numbers. Their count is prime, so that rows of a large tensor do not repeat."""
    rng = np.random.default_rng(0)
    return rng.standard_normal(1_000_003).astype(np.float32), rng.random(1_000_003).astype(np.float32)


def draw(name: str, shape: tuple) -> np.ndarray:
    """Return the tensor of a name and shape, equal on all machines.

    Args:
        name: Name in the state dict of the reference; for Keras "layer/variable".
        shape: Shape in the layout of the reference. Input channels are before output channels if the name ends in
            "kernel", as in Keras, and after them otherwise, as in PyTorch.

    Returns:
        A float32 array; int64 for PyTorch's number of batches.
    """
    seed = zlib.crc32(name.encode())
    if name.endswith("num_batches_tracked"):
        return np.full(shape, seed % 100, np.int64)
    normal, uniform = pools()

    def cut(pool, scale):
        start, size = seed % len(pool), math.prod(shape)
        if start + size <= len(pool):
            return np.float32(scale) * pool[start : start + size].reshape(shape)
        return np.resize(np.roll(np.float32(scale) * pool, -start), shape)

    matrix = len(shape) >= 2 and not name.endswith("layer_scale")
    if matrix:
        fan_in = math.prod(shape[:-1] if name.endswith("kernel") else shape[1:])
        return cut(normal, math.sqrt(2 / fan_in))
    for pattern, (low, high) in UNIFORM:
        if pattern.search(name):
            return np.float32(low) + cut(uniform, high - low)
    return cut(normal, 0.1)


def photos(size: int) -> np.ndarray:
    """Return square crops of two photographs of scikit-learn, [2, size, size, 3] float32 in -1..1, RGB.

    Raises:
        RuntimeError: The JPEG decoder of this machine gives other pixels than those of the golden files.
    """
    row, column = CORNER
    whole = np.stack(
        [
            load_sample_image(name)[row : row + LARGEST, column : column + LARGEST]
            for name in ("china.jpg", "flower.jpg")
        ]
    )
    digest = hashlib.sha256(np.ascontiguousarray(whole).tobytes()).hexdigest()
    if digest != PHOTO_SHA256:
        raise RuntimeError(
            f"the photographs decode to {digest[:12]} here, and to {PHOTO_SHA256[:12]} where the golden files were"
            " made: this JPEG decoder rounds otherwise, and the zoo's golden values cannot be compared"
        )
    return whole[:, :size, :size].astype(np.float32) / np.float32(127.5) - 1


def sample(array, most: int = 256) -> np.ndarray:
    """Return at most `most` values in C order: the first, the last, and evenly spaced ones in between.

    The spacing is (size - 1) / (most - 1), because size / most is often a multiple of the number of channels and would
    sample a single channel.
    """
    flat = np.asarray(array).reshape(-1)
    if flat.size <= most:
        return flat
    return flat[np.arange(most) * (flat.size - 1) // (most - 1)]
