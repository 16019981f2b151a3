"""Scenes: real digits or garments at random scale, place and overlap on textured canvases, with exact masks and boxes.

Picture i of a split depends on the options' seed, the split and i alone, not on how many pictures there are. The
items of train, valid and test are cut from different source pictures.
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

SPLITS = ("train", "valid", "test")
TRIES = 10


@dataclasses.dataclass(frozen=True)
class Options:
    """How many scenes there are and what they look like."""

    train: int = field(1000, "training pictures", ge=1)
    valid: int = field(250, "validation pictures", ge=1)
    test: int = field(250, "test pictures", ge=1)
    side: int = field(64, "of a picture", unit="pixels", ge=16)
    objects: tuple[int, int] = field((1, 4), "least and most objects of a picture, before those that find no place")
    scale: tuple[float, float] = field((0.35, 0.55), "least and most side of an item, as a share of the picture's")
    overlap: float = field(0.15, "largest share of an object that later ones hide", ge=0, le=1)
    contrast: float = field(0.4, "least distance of an object's colour from what it covers, of 1 in RGB's cube", ge=0)
    texture: float = field(0.6, "strength of the background's texture; 0: one colour", ge=0, le=1)
    noise: float = field(0.02, "standard deviation of every pixel's noise, of 1", ge=0, le=1)
    palette: str = field(
        "any",
        "any: objects and background have colours of any brightness; light: light objects stand on dark grounds, which "
        "takes a fraction of the steps to learn",
        choices=("any", "light"),
    )
    color: bool = field(True, "three channels; else grey, one channel")
    items: str = field("digits", "what stands in the scenes", choices=("digits", "fashion-mnist"))
    seed: int = field(0, "of all that is drawn", ge=0)

    def __post_init__(self):
        for name, least, most in (("objects", 0, 200), ("scale", 0.01, 1)):
            low, high = getattr(self, name)
            if not least <= low <= high <= most or high == 0:
                raise UserError(
                    f"data.options.{name} must be two ascending numbers in {least}..{most}, got {low}, {high}."
                )


@dataclasses.dataclass(frozen=True, eq=False)
class ObjectPool:
    """What scenes are made of.

    Attributes:
      images: uint8 [N, H, W], 0 where there is nothing.
      labels: int32 [N].
      index: int [N], which picture of the source's train or test split each one is.
      filled: whether all that is not 0 belongs to the item, which is shaded; else it is the ink of a stroke.
    """

    images: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    filled: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """One picture and what is in it.

    Attributes:
      image: uint8 [S, S, C].
      owner: int [S, S], which object a pixel shows, -1 none: the last one that covers at least half of it.
      labels: int32 [K], the objects' classes.
      boxes: float32 [K, 4], the tight boxes of the pixels that show them.
      sources: int [K], their places in `Items.index`'s split.
    """

    image: np.ndarray
    owner: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    sources: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """uint8 [S, S], 0 for background, else class + 1."""
        return np.append(self.labels + 1, 0).astype(np.uint8)[self.owner]


def load(config: DataConfig, task: str) -> RawDataset:
    """The scenes with masks for "segmentation" (class 0 is the background) or boxes for "detection".

    Their validation pictures are a split of their own; of the items' files none may be bad.
    """
    options = source_options.parse_options(config, Options)
    groups, classes = _items(options.items, config.path)
    splits = {}
    for name in SPLITS:
        scenes = [render_scene(groups[name], options, name, i) for i in range(getattr(options, name))]
        splits[name] = _masks(scenes) if task == "segmentation" else _boxes(scenes, options.objects[1])
    return RawDataset(**splits, classes=("background", *classes) if task == "segmentation" else classes)


def object_pool(options: Options, path: str | None = None) -> dict[str, ObjectPool]:
    """The items of each split; `path` is where Fashion-MNIST lies, as `data.path` has it."""
    return _items(options.items, path)[0]


def _items(name: str, path: str | None) -> tuple[dict[str, ObjectPool], tuple[str, ...]]:
    load = {"digits": digits.load, "fashion-mnist": idx.load_fashion}[name]
    published = load(DataConfig(name=name, path=path), "classification")
    held_out, rest = stratified_sample(published.train.labels, lambda n: max(1, n // 5), key="scenes validation")
    rows = {"train": rest, "valid": held_out, "test": np.arange(len(published.test))}
    groups = {}
    for split, index in rows.items():
        whole = published.test if split == "test" else published.train
        groups[split] = ObjectPool(whole.images[index, ..., 0], whole.labels[index], index, filled=name != "digits")
    return groups, published.classes


def render_scene(group: ObjectPool, options: Options, split: str, index: int) -> Scene:
    """Scene `index` of a split."""
    rng = np.random.default_rng([options.seed, SPLITS.index(split), index])
    side = options.side
    dark, light = ((0, 1), (0, 1)) if options.palette == "any" else ((0, 0.5), (0.5, 1))
    canvas = background(rng, side, 3 if options.color else 1, options.texture, dark)
    owner, whole, chosen = np.full((side, side), -1), [], []
    for _ in range(rng.integers(*options.objects, endpoint=True)):
        item = rng.integers(len(group.images))
        extent = max(4, round(side * rng.uniform(*options.scale)))
        coverage, shade = _render(group.images[item], extent, group.filled)
        window = _place(rng, owner, coverage >= 0.5, whole, options.overlap)
        if window is None:
            continue
        owner[window][coverage >= 0.5] = len(whole)
        whole.append(np.count_nonzero(coverage >= 0.5))
        chosen.append(item)
        colour = contrasting_color(rng, canvas[window], coverage, options.contrast, light)
        canvas[window] += coverage[..., None] * (colour * shade[..., None] - canvas[window])
    canvas += rng.normal(0, options.noise, canvas.shape)
    image = np.round(255 * np.clip(canvas, 0, 1)).astype(np.uint8)
    boxes = np.array([_tight(owner == k) for k in range(len(whole))], np.float32).reshape(-1, 4)
    chosen = np.array(chosen, int)
    return Scene(image, owner, group.labels[chosen], boxes, group.index[chosen])


def _place(rng, owner: np.ndarray, mask: np.ndarray, whole: list[int], overlap: float) -> tuple[slice, slice] | None:
    """Where an object may lie without hiding more than it may of any other; None: no place was found."""
    visible = np.bincount(owner[owner >= 0], minlength=len(whole))
    for y, x in rng.integers(0, np.array(owner.shape) - mask.shape, (TRIES, 2), endpoint=True):
        window = slice(y, y + mask.shape[0]), slice(x, x + mask.shape[1])
        covered = owner[window][mask]
        left = visible - np.bincount(covered[covered >= 0], minlength=len(whole))
        # At least one pixel stays of each, so that every object has a box.
        if (left >= np.maximum(1, (1 - overlap) * np.array(whole))).all():
            return window
    return None


def _render(item: np.ndarray, extent: int, filled: bool) -> tuple[np.ndarray, np.ndarray]:
    """An item brought to `extent` pixels and cut out: how much of each pixel it covers, and its shade, 0..1, [h, w]."""
    grey = item.astype(np.float32) / item.max()
    # Garments have dark places that belong to them; 0.05 keeps out what little noise surrounds them.
    solid = (grey > 0.05).astype(np.float32) if filled else grey
    sharpness = max(1.0, extent / len(item))  # an edge is about a pixel wide
    solid = _resize(solid, extent)
    coverage = np.clip((solid / solid.max() - 0.5) * sharpness + 0.5, 0, 1)
    shade = 0.4 + 0.6 * np.clip(_resize(grey, extent), 0, 1) if filled else np.ones_like(coverage)
    y0, x0, y1, x1 = _tight(coverage > 0)
    return coverage[y0:y1, x0:x1], shade[y0:y1, x0:x1]


def _resize(plane: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(plane).resize((side, side), Image.Resampling.BICUBIC))


def _tight(mask: np.ndarray) -> tuple[int, int, int, int]:
    """[y0, x0, y1, x1] around the pixels of a mask that has some."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return rows[0], columns[0], rows[-1] + 1, columns[-1] + 1


def _masks(scenes: list[Scene]) -> Split:
    return Split(np.stack([s.image for s in scenes]), np.stack([s.mask for s in scenes]))


def _boxes(scenes: list[Scene], most: int) -> Split:
    labels, boxes = np.full((len(scenes), most), -1, np.int32), np.zeros((len(scenes), most, 4), np.float32)
    for i, scene in enumerate(scenes):
        count = len(scene.labels)
        labels[i, :count], boxes[i, :count] = scene.labels, scene.boxes
    return Split(np.stack([s.image for s in scenes]), labels, boxes)
