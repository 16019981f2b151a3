"""Feature maps of frozen networks: one compiled forward pass, and its maps over a split."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tljax.data import Split
from tljax.data.loader import eval_batches
from tljax.distributed.mesh import DeviceMesh
from tljax.models import params as params_lib
from tljax.models.params import Variables
from tljax.ops.convolution import inference_options
from tljax.weights import Preprocess, make_preprocess


@functools.lru_cache(maxsize=64)
def make_feature_fn(graphdef: nnx.GraphDef, preprocess: Preprocess, dtype: str, stages: tuple[str, ...], pool: str):
    """Compiles `features(leaves, images) → {stage: map}` in inference mode, float32.

    `images` are uint8 [B, H, W, C]. A map is [B, c] with pool "avg", averaged over its places, and [B, h, w, c] with
    "none". What no stage of `stages` needs is not computed.
    """
    prepare = make_preprocess(preprocess, preprocess.size, dtype)

    def features(leaves: Variables, images: jax.Array) -> dict[str, jax.Array]:
        maps = params_lib.merge(graphdef, leaves).features(prepare(images), train=False)
        taken = {stage: maps[stage].astype(jnp.float32) for stage in stages}
        return taken if pool == "none" else {stage: x.mean((1, 2)) for stage, x in taken.items()}

    return jax.jit(features, compiler_options=inference_options())


def feature_shapes(features: Callable, variables: Variables, split: Split) -> dict[str, tuple[int, ...]]:
    """What `features` (from `make_features`) makes of one picture of a split: stage → shape. Computes nothing."""
    picture = jax.ShapeDtypeStruct((1, *split.images.shape[1:]), jnp.uint8)
    return {stage: x.shape[1:] for stage, x in jax.eval_shape(features, variables, picture).items()}


def extract(
    features: Callable,
    variables: Variables,
    split: Split,
    batch_size: int,
    mesh: DeviceMesh,
    advance: Callable[[int], None] = lambda pictures: None,
) -> dict[str, np.ndarray]:
    """The maps of every picture, stage → float32 [N, c] or [N, h, w, c].

    Args:
      features: from `make_features`.
      variables: of the model, on the mesh.
      split: uint8 pictures.
      batch_size: pictures at a time.
      mesh: over which batches are split.
      advance: called with the number of pictures of each batch that is done.
    """
    shapes = feature_shapes(features, variables, split)
    kept = {stage: np.empty((len(split), *shape), np.float32) for stage, shape in shapes.items()}
    map_batches(
        lambda batch: features(variables, batch["image"]), {"image": split.images}, batch_size, mesh, kept, advance
    )
    return kept


def map_batches(
    function: Callable[[dict], dict],
    arrays: Mapping[str, np.ndarray],
    batch_size: int,
    mesh: DeviceMesh,
    out: Mapping[str, np.ndarray],
    advance: Callable[[int], None] = lambda rows: None,
) -> None:
    """Writes what a compiled function makes of every row into `out`, row by row.

    Args:
      function: a batch, {name: [B, ...]} → {name: [B, ...]}.
      arrays: equally long.
      batch_size: rows at a time; the last batch is padded, and the padding dropped.
      mesh: over which batches are split.
      out: as long as the arrays, by the names of the results.
      advance: called with the number of rows of each batch that is done.
    """
    size, waiting = len(next(iter(arrays.values()))), None

    def write(start: int, results: dict[str, jax.Array]) -> None:
        real = min(batch_size, size - start)
        for name, rows in jax.device_get(results).items():
            out[name][start : start + real] = rows[:real]
        advance(real)

    # Whole maps are large: one batch is computed while the one before it is fetched, and no more wait on the device.
    for i, batch in enumerate(eval_batches(arrays, batch_size)):
        results = function(mesh.put_batch(batch))
        if waiting is not None:
            write(*waiting)
        waiting = i * batch_size, results
    if waiting is not None:
        write(*waiting)
