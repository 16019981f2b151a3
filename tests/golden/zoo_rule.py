"""What the zoo's golden files and the tests that read them must agree upon: weights, pictures, labels and thinning.

The files hold no weights. Every tensor is drawn by `draw` from its name in the reference and its shape, so a test can
make the checkpoint that the reference saw. Needs NumPy and scikit-learn (with Pillow) alone.
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

# Branches end in these norms. Were their scales near one, each block of a ResNet would double the power of its map.
RESIDUAL = re.compile(r"\.bn3\.weight$|_3_bn/gamma$")

# The first pattern found in a name gives the range of a uniform distribution.
UNIFORM = (
    (re.compile(r"running_var$|moving_variance$"), (0.5, 1.5)),
    (re.compile(r"layer_scale$|\.gamma$"), (0.1, 0.5)),
    (RESIDUAL, (0.1, 0.4)),
    (re.compile(r"weight$|/gamma$"), (0.7, 1.1)),
)


@functools.cache
def pools():
    """Normal and uniform numbers. Their count is a prime, so that a large tensor's rows do not repeat."""
    rng = np.random.default_rng(0)
    return rng.standard_normal(1_000_003).astype(np.float32), rng.random(1_000_003).astype(np.float32)


def draw(name: str, shape: tuple) -> np.ndarray:
    """The tensor of this name and shape, the same on every machine.

    Args:
        name: As in the reference's state dict; for Keras "layer/variable".
        shape: In the reference's layout. The inputs come first where the name ends in "kernel", as in Keras, and else
            last, as in PyTorch.

    Returns:
        float32, but int64 for PyTorch's count of batches.
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
    """Two square pieces of scikit-learn's photographs: [2, size, size, 3] float32 in -1..1, RGB.

    Raises:
        RuntimeError: This machine decodes the JPEG files to other pixels than the golden files were made from.
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
    """At most `most` values: the first, the last, and evenly spaced ones between, in C order.

    The spacing is (size - 1) / (most - 1), as size / most would be a multiple of the channels in most maps, and would
    look at one channel alone.
    """
    flat = np.asarray(array).reshape(-1)
    if flat.size <= most:
        return flat
    return flat[np.arange(most) * (flat.size - 1) // (most - 1)]
