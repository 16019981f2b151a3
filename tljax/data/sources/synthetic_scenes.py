"""Synthetic scenes: real digits or garments at random scale, location and overlap on textures, with exact masks.

Image i of a split depends on the seed in the options, the split and i alone, not on the number of images. The objects
of train, valid and test are cut from different images of the underlying dataset.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from tljax.config import DataConfig
from tljax.config.fields import field
from tljax.data.dataset import RawDataset, Split
from tljax.data.sources import digits, idx
from tljax.data.sources import options as source_options
from tljax.data.sources.textures import background, contrasting_color
from tljax.data.splits import stratified_sample
from tljax.errors import UserError

_SPLITS = ("train", "valid", "test")
_MAX_TRIES = 10  # random locations tried for each object


@dataclasses.dataclass(frozen=True)
class Options:
    """Number and appearance of the scenes."""

    train: int = field(1000, "training images", ge=1)
    valid: int = field(250, "validation images", ge=1)
    test: int = field(250, "test images", ge=1)
    side: int = field(64, "side of an image", unit="pixels", ge=16)
    objects: tuple[int, int] = field(
        (1, 4), "min and max objects per image; an object for which no location is found is left out"
    )
    scale: tuple[float, float] = field((0.35, 0.55), "min and max side of an object, as a share of the image's side")
    overlap: float = field(0.15, "max share of an object that later objects hide", ge=0, le=1)
    contrast: float = field(0.4, "min distance of an object's color from what it covers, RMS over channels", ge=0)
    texture: float = field(0.6, "strength of the background's texture; 0: a single color", ge=0, le=1)
    noise: float = field(0.02, "standard deviation of the pixel noise, for values in 0..1", ge=0, le=1)
    palette: str = field(
        "any",
        "any: objects and background have any brightness; light: light objects on dark backgrounds, which trains in "
        "a fraction of the steps",
        choices=("any", "light"),
    )
    color: bool = field(True, "three channels; else grayscale, one channel")
    items: str = field("digits", "dataset that the objects are cut from", choices=("digits", "fashion-mnist"))
    seed: int = field(0, "random seed of the scenes", ge=0)

    def __post_init__(self):
        for name, minimum, maximum in (("objects", 0, 200), ("scale", 0.01, 1)):
            low, high = getattr(self, name)
            if not minimum <= low <= high <= maximum or high == 0:
                raise UserError(
                    f"data.options.{name} must be two ascending numbers in {minimum}..{maximum}, got {low}, {high}."
                )


@dataclasses.dataclass(frozen=True, eq=False)
class ObjectPool:
    """Images that the objects of a split are cut from.

    Attributes:
      images: uint8 [N, H, W], 0 for background.
      labels: int32 [N].
      source_index: int [N], row of each image in the train or test split of its dataset.
      filled: True: every pixel above 0 belongs to the object, and its value is the shade; False: values are the
        coverage by a stroke.
    """

    images: np.ndarray
    labels: np.ndarray
    source_index: np.ndarray
    filled: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """An image with its objects.

    Attributes:
      image: uint8 [S, S, C].
      instance_map: int [S, S], index of the object that each pixel shows, the last one that covers at least half of
        it; -1 for background.
      labels: int32 [K], classes of the objects.
      boxes: float32 [K, 4], tight boxes around the visible pixels of the objects.
      source_index: int [K], `ObjectPool.source_index` of the objects.
    """

    image: np.ndarray
    instance_map: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    source_index: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """uint8 [S, S], 0 for background, else class + 1."""
        return np.append(self.labels + 1, 0).astype(np.uint8)[self.instance_map]


def load(config: DataConfig, task: str) -> RawDataset:
    """Render the scenes of all splits, with masks (class 0 is the background) or boxes.

    Args:
      config: the data section of the config; `path` is the folder of Fashion-MNIST.
      task: "segmentation" or "detection".
    """
    options = source_options.parse_options(config, Options)
    pools, classes = _load_pools(options.items, config.path)
    splits = {}
    for name in _SPLITS:
        scenes = [render_scene(pools[name], options, name, i) for i in range(getattr(options, name))]
        splits[name] = _mask_split(scenes) if task == "segmentation" else _box_split(scenes, options.objects[1])
    return RawDataset(**splits, classes=("background", *classes) if task == "segmentation" else classes)


def object_pools(options: Options, path: str | None = None) -> dict[str, ObjectPool]:
    """Return the object pool of each split.

    Args:
      options: of the scenes.
      path: folder of Fashion-MNIST, as `data.path`.
    """
    return _load_pools(options.items, path)[0]


def _load_pools(name: str, path: str | None) -> tuple[dict[str, ObjectPool], tuple[str, ...]]:
    """Return the object pool of each split and the class names of a dataset."""
    load_dataset = {"digits": digits.load, "fashion-mnist": idx.load_fashion}[name]
    dataset = load_dataset(DataConfig(name=name, path=path), "classification")
    held_out, rest = stratified_sample(dataset.train.labels, lambda n: max(1, n // 5), key="scenes validation")
    rows = {"train": rest, "valid": held_out, "test": np.arange(len(dataset.test))}
    pools = {}
    for split, index in rows.items():
        source = dataset.test if split == "test" else dataset.train
        pools[split] = ObjectPool(source.images[index, ..., 0], source.labels[index], index, filled=name != "digits")
    return pools, dataset.classes


def render_scene(pool: ObjectPool, options: Options, split: str, index: int) -> Scene:
    """Render one scene.

    Args:
      pool: object pool of the split.
      options: of the scenes.
      split: "train", "valid" or "test".
      index: of the scene in its split.
    """
    rng = np.random.default_rng([options.seed, _SPLITS.index(split), index])
    side = options.side
    background_range, object_range = ((0, 1), (0, 1)) if options.palette == "any" else ((0, 0.5), (0.5, 1))
    canvas = background(rng, side, 3 if options.color else 1, options.texture, background_range)
    instance_map = np.full((side, side), -1)
    areas, pool_indices = [], []
    for _ in range(rng.integers(*options.objects, endpoint=True)):
        pool_index = rng.integers(len(pool.images))
        extent = max(4, round(side * rng.uniform(*options.scale)))
        coverage, shade = _render_object(pool.images[pool_index], extent, pool.filled)
        window = _find_location(rng, instance_map, coverage >= 0.5, areas, options.overlap)
        if window is None:
            continue
        instance_map[window][coverage >= 0.5] = len(areas)
        areas.append(np.count_nonzero(coverage >= 0.5))
        pool_indices.append(pool_index)
        color = contrasting_color(rng, canvas[window], coverage, options.contrast, object_range)
        canvas[window] += coverage[..., None] * (color * shade[..., None] - canvas[window])
    canvas += rng.normal(0, options.noise, canvas.shape)
    image = np.round(255 * np.clip(canvas, 0, 1)).astype(np.uint8)
    boxes = np.array([_bounding_box(instance_map == k) for k in range(len(areas))], np.float32).reshape(-1, 4)
    pool_indices = np.array(pool_indices, int)
    return Scene(image, instance_map, pool.labels[pool_indices], boxes, pool.source_index[pool_indices])


def _find_location(
    rng: np.random.Generator, instance_map: np.ndarray, mask: np.ndarray, areas: list[int], overlap: float
) -> tuple[slice, slice] | None:
    """Return a random window [h, w] in which an object hides at most `overlap` of any other; None: not found.

    Args:
      rng: random generator.
      instance_map: int [S, S], the objects so far.
      mask: bool [h, w], pixels of the new object.
      areas: pixels of each object so far, hidden ones included.
      overlap: max share of an object that is hidden.
    """
    visible = np.bincount(instance_map[instance_map >= 0], minlength=len(areas))
    for y, x in rng.integers(0, np.array(instance_map.shape) - mask.shape, (_MAX_TRIES, 2), endpoint=True):
        window = slice(y, y + mask.shape[0]), slice(x, x + mask.shape[1])
        covered = instance_map[window][mask]
        still_visible = visible - np.bincount(covered[covered >= 0], minlength=len(areas))
        # At least one pixel of each object stays visible, so that every object has a box.
        if (still_visible >= np.maximum(1, (1 - overlap) * np.array(areas))).all():
            return window
    return None


def _render_object(image: np.ndarray, extent: int, filled: bool) -> tuple[np.ndarray, np.ndarray]:
    """Resize an object to `extent` pixels and crop it: coverage of each pixel and shade, 0..1, [h, w] each."""
    gray = image.astype(np.float32) / image.max()
    # Garments have dark pixels inside; the threshold of 0.05 excludes the faint noise around them.
    solid = (gray > 0.05).astype(np.float32) if filled else gray
    sharpness = max(1.0, extent / len(image))  # edges are about one pixel wide
    solid = _resize(solid, extent)
    coverage = np.clip((solid / solid.max() - 0.5) * sharpness + 0.5, 0, 1)
    shade = 0.4 + 0.6 * np.clip(_resize(gray, extent), 0, 1) if filled else np.ones_like(coverage)
    y0, x0, y1, x1 = _bounding_box(coverage > 0)
    return coverage[y0:y1, x0:x1], shade[y0:y1, x0:x1]


def _resize(plane: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(plane).resize((side, side), Image.Resampling.BICUBIC))


def _bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return [y0, x0, y1, x1] around the pixels of a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return rows[0], columns[0], rows[-1] + 1, columns[-1] + 1


def _mask_split(scenes: list[Scene]) -> Split:
    return Split(np.stack([s.image for s in scenes]), np.stack([s.mask for s in scenes]))


def _box_split(scenes: list[Scene], max_boxes: int) -> Split:
    labels = np.full((len(scenes), max_boxes), -1, np.int32)
    boxes = np.zeros((len(scenes), max_boxes, 4), np.float32)
    for i, scene in enumerate(scenes):
        count = len(scene.labels)
        labels[i, :count], boxes[i, :count] = scene.labels, scene.boxes
    return Split(np.stack([s.image for s in scenes]), labels, boxes)
