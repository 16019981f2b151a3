"""A custom data source: images of geometric shapes, drawn when they are loaded.

    python run.py --config=examples/data_source.py

docs/extending.md describes the contract.
"""

import dataclasses

import numpy as np

from tljax import config as schema
from tljax.config.fields import field
from tljax.data import RawDataset, Split
from tljax.data.sources.options import parse_options

CLASSES = ("circle", "square", "diamond", "cross")


@dataclasses.dataclass(frozen=True)
class Options:
    """Fields of `data.options`."""

    train: int = field(600, "training images", ge=8)
    test: int = field(200, "test images", ge=4)
    side: int = field(24, "side of an image", unit="pixels", ge=8)
    noise: float = field(20.0, "standard deviation of the pixel noise, for values in 0..255", ge=0)


def load(config, task):
    """Return the dataset.

    Args:
      config: the section `data` of the config.
      task: "classification", the only task that this source has labels for.
    """
    options = parse_options(config, Options)
    rng = np.random.default_rng(0)  # the images must not depend on the seed of the run
    return RawDataset(draw_split(rng, options.train, options), draw_split(rng, options.test, options), CLASSES)


def draw_split(rng, count, options):
    """Return a split of `count` images, with as many of each class as possible."""
    labels = np.arange(count, dtype=np.int32) % len(CLASSES)
    images = [draw_image(rng, CLASSES[label], options) for label in labels]
    return Split(np.stack(images), labels)


def draw_image(rng, shape, options):
    """Return uint8 [side, side, 3]: a shape of random size, location and color on a noisy background."""
    side = options.side
    radius = rng.uniform(0.2, 0.35) * side
    y, x = np.abs(np.mgrid[:side, :side] + 0.5 - rng.uniform(0.4 * side, 0.6 * side, (2, 1, 1)))
    inside = {
        "circle": np.hypot(y, x) < radius,
        "square": np.maximum(y, x) < 0.9 * radius,
        "diamond": y + x < 1.2 * radius,
        "cross": (np.minimum(y, x) < 0.3 * radius) & (np.maximum(y, x) < radius),
    }[shape]
    background, foreground = rng.uniform(0, 110, 3), rng.uniform(130, 255, 3)
    image = np.where(inside[..., None], foreground, background) + rng.normal(0, options.noise, (side, side, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


def get_config():
    """Train a small ResNet on the shapes."""
    c = schema.default()
    c.data.name = "examples/data_source.py:load"
    c.data.options = {"train": 600, "noise": 20.0}
    c.model.backbone = "resnet8"
    c.strategy.name = "scratch"
    c.train.epochs = 6
    return c
