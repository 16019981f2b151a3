"""Extraction of features: a compiled forward pass, and its outputs for a whole split."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tljax.data import Split
from tljax.data.dataset import Images
from tljax.data.loader import eval_batches
from tljax.distributed.mesh import DeviceMesh
from tljax.models import params as params_lib
from tljax.models.params import Variables
from tljax.ops.convolution import inference_options
from tljax.weights import Preprocess, make_preprocess

# Bytes of the largest feature map of a batch in inference mode; larger batches are not faster.
MAX_BATCH_BYTES = 1 << 26


def inference_batch_size(side: int, mesh: DeviceMesh) -> int:
    """Return the batch size in inference mode, for square inputs of `side` pixels.

    Assumes that the largest feature map has 64 channels at full resolution.
    """
    return mesh.round_up(max(8, min(512, MAX_BATCH_BYTES // (4 * 64 * side**2))))


@functools.lru_cache(maxsize=64)
def make_feature_fn(graphdef: nnx.GraphDef, preprocess: Preprocess, dtype: str, stages: tuple[str, ...], pool: str):
    """Compile `features(variables, images) → {stage: features}` in inference mode, float32.

    `images` are uint8 [B, H, W, C]. With pool "avg", features [B, c] are averaged over locations; with "none" they are
    [B, h, w, c]. Layers that none of the `stages` needs are not computed.
    """
    prepare = make_preprocess(preprocess, preprocess.size, dtype)

    def features(variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        feature_maps = params_lib.merge(graphdef, variables).features(prepare(images), train=False)
        selected = {stage: feature_maps[stage].astype(jnp.float32) for stage in stages}
        return selected if pool == "none" else {stage: x.mean((1, 2)) for stage, x in selected.items()}

    return jax.jit(features, compiler_options=inference_options())


def feature_shapes(features: Callable, variables: Variables, split: Split) -> dict[str, tuple[int, ...]]:
    """Return the shape of one image's features by stage, for `features` from `make_feature_fn`; computes nothing."""
    image = jax.ShapeDtypeStruct((1, *split.images.shape[1:]), jnp.uint8)
    return {stage: x.shape[1:] for stage, x in jax.eval_shape(features, variables, image).items()}


def extract(
    features: Callable,
    variables: Variables,
    split: Split,
    batch_size: int,
    mesh: DeviceMesh,
    advance: Callable[[int], None] = lambda images: None,
) -> dict[str, np.ndarray]:
    """Return the features of all images of a split in order, {stage: [N, ...]}.

    Args:
      features: compiled function from `make_feature_fn`.
      variables: variables of the network.
      split: split with the images.
      batch_size: number of images per batch.
      mesh: devices that share a batch.
      advance: called with the number of images of each finished batch.
    """
    shapes = feature_shapes(features, variables, split)
    out = {stage: np.empty((len(split), *shape), np.float32) for stage, shape in shapes.items()}
    map_batches(
        lambda batch: features(variables, batch["image"]), {"image": split.images}, batch_size, mesh, out, advance
    )
    return out


def map_batches(
    function: Callable[[dict], dict],
    arrays: Mapping[str, Images],
    batch_size: int,
    mesh: DeviceMesh,
    out: Mapping[str, np.ndarray],
    advance: Callable[[int], None] = lambda rows: None,
) -> None:
    """Apply a compiled function to all rows in batches, and write the results into `out`.

    Args:
      function: function from a batch {name: [B, ...]} to results {name: [B, ...]}.
      arrays: input arrays of equal length N.
      batch_size: number of rows per batch; padding of the last batch is removed from the results.
      mesh: devices that share a batch.
      out: arrays [N, ...] by the names of the results.
      advance: called with the number of rows of each finished batch.
    """
    size = len(next(iter(arrays.values())))
    pending = None

    def write(start: int, results: dict[str, jax.Array]) -> None:
        real = min(batch_size, size - start)  # the last batch is padded
        for name, rows in jax.device_get(results).items():
            out[name][start : start + real] = rows[:real]
        advance(real)

    # Features are large: while one batch is computed, the previous one is fetched; no others stay on the device.
    for i, batch in enumerate(eval_batches(arrays, batch_size)):
        results = function(mesh.put_batch(batch))
        if pending is not None:
            write(*pending)
        pending = i * batch_size, results
    if pending is not None:
        write(*pending)
