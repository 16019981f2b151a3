"""Feature maps of frozen networks: one compiled forward pass, and its maps over a split."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tljax.data import Split
from tljax.data.loader import eval_batches
from tljax.models import state as leaves_of
from tljax.models.state import Leaves
from tljax.train.sharding import Mesh
from tljax.weights import Preprocess, make_preprocess


@functools.lru_cache(maxsize=64)
def make_features(graphdef: nnx.GraphDef, preprocess: Preprocess, dtype: str, stages: tuple[str, ...], pool: str):
    """Compiles `features(leaves, images) → {stage: map}` in inference mode, float32.

    `images` are uint8 [B, H, W, C]. A map is [B, c] with pool "gap", averaged over its places, and [B, h, w, c] with
    "none". What no stage of `stages` needs is not computed.
    """
    prepare = make_preprocess(preprocess, preprocess.size, dtype)

    def features(leaves: Leaves, images: jax.Array) -> dict[str, jax.Array]:
        maps = leaves_of.merge(graphdef, leaves).features(prepare(images), train=False)
        taken = {stage: maps[stage].astype(jnp.float32) for stage in stages}
        return taken if pool == "none" else {stage: x.mean((1, 2)) for stage, x in taken.items()}

    return jax.jit(features)


def shapes_of(features: Callable, leaves: Leaves, split: Split) -> dict[str, tuple[int, ...]]:
    """What `features` (from `make_features`) makes of one picture of a split: stage → shape. Computes nothing."""
    picture = jax.ShapeDtypeStruct((1, *split.images.shape[1:]), jnp.uint8)
    return {stage: x.shape[1:] for stage, x in jax.eval_shape(features, leaves, picture).items()}


def extract(
    features: Callable,
    leaves: Leaves,
    split: Split,
    batch_size: int,
    mesh: Mesh,
    advance: Callable[[int], None] = lambda pictures: None,
) -> dict[str, np.ndarray]:
    """The maps of every picture, stage → float32 [N, c] or [N, h, w, c].

    Args:
      features: from `make_features`.
      leaves: of the model, on the mesh.
      split: uint8 pictures.
      batch_size: pictures at a time; the last batch is padded, and the padding dropped.
      mesh: over which batches are split.
      advance: called with the number of pictures of each batch that is done.
    """
    shapes = shapes_of(features, leaves, split)
    kept = {stage: np.empty((len(split), *shape), np.float32) for stage, shape in shapes.items()}

    def keep(start: int, maps: dict[str, jax.Array]) -> None:
        real = min(batch_size, len(split) - start)
        for stage, rows in jax.device_get(maps).items():
            kept[stage][start : start + real] = rows[:real]
        advance(real)

    # Whole maps are large: one batch is computed while the one before it is fetched, and no more wait on the device.
    waiting = None
    for i, batch in enumerate(eval_batches(split, batch_size)):
        maps = features(leaves, mesh.put_batch(batch["image"]))
        if waiting is not None:
            keep(*waiting)
        waiting = i * batch_size, maps
    if waiting is not None:
        keep(*waiting)
    return kept
