"""Outputs of frozen networks for whole splits, computed once and cached in memory or on disk."""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping

import jax
import numpy as np

import tljax
from tljax import plugins
from tljax.augment.ops import op_files
from tljax.augment.pipeline import make_augment
from tljax.config import AugmentConfig, Config
from tljax.data import Split
from tljax.distributed.mesh import DeviceMesh
from tljax.features.extract import inference_batch_size, map_batches
from tljax.features.frozen_network import FrozenNetwork, apply_frozen, output_shapes
from tljax.losses.weight_maps import boundary_weights
from tljax.models.params import Variables
from tljax.ops.convolution import inference_options
from tljax.storage import cache_dir
from tljax.storage.array_cache import ArrayCache, CachedArrays
from tljax.storage.source_digest import source_digest
from tljax.tasks import task_of
from tljax.weights import params_hash

# Modules that compute features. The hash of their source and of all imported modules is part of the cache key.
CODE = ("tljax.features.frozen_network", "tljax.augment.pipeline")


class FeatureCache:
    """Computes outputs of frozen networks for whole splits, or reads them from the cache.

    Args:
      config: the config of the run.
      mesh: the devices.
      progress: a `tljax.train.callbacks.ProgressReporter`.

    Attributes:
      record: a row for each request, as in result.json.
    """

    def __init__(self, config: Config, mesh: DeviceMesh, progress):
        self.config = config
        self.mesh = mesh
        self.progress = progress
        self.record: list[dict] = []
        self.spatial = task_of(config).spatial
        self.store = ArrayCache(config.cache, cache_dir.cache_dir("features"))

    def get(
        self,
        network: FrozenNetwork,
        variables: Variables,
        split: Split,
        name: str,
        num_views: int = 0,
        passes: float = 1.0,
    ) -> Mapping[str, np.ndarray]:
        """Return the outputs of a frozen network for a whole split, from the cache if possible.

        Args:
          network: the frozen network.
          variables: variables of the network, on the devices.
          split: split with the images.
          name: name of the task, for progress and record.
          num_views: number of augmented views of each image; 0: images without augmentation.
          passes: number of passes over the split that the cache replaces, to estimate the saved time.

        Returns:
          {name: [N, ...]} with names as in `apply_frozen`; with views [num_views * N, ...], view by view.
        """
        count = max(1, num_views) * len(split.images)
        shapes = output_shapes(network, variables, split.images.shape[1:])
        shapes = {n: jax.ShapeDtypeStruct((count, *s.shape), s.dtype) for n, s in shapes.items()}
        fill = functools.partial(self._compute, network, variables, split, name, num_views)
        entry = self.store.get(self._key(network, variables, split, num_views), shapes, fill)
        self._report(name, entry, count, passes)
        return entry.arrays

    def _key(self, network: FrozenNetwork, variables: Variables, split: Split, num_views: int) -> dict:
        """Return the cache key: everything that the outputs depend on."""
        views = None
        if num_views:
            size = inference_batch_size(network.preprocess.side, self.mesh)
            views = {"count": num_views, "seed": self.config.seed, "batch": size, "augment": repr(self.config.augment)}
            views["files"] = op_files(self.config.augment)
        return {
            "network": hashlib.sha256(_without_addresses(repr(network)).encode()).hexdigest(),
            "variables": params_hash(variables),
            "images": split.fingerprint,
            "views": views,
            "device": jax.devices()[0].device_kind,
            "products": [str(jax.config.jax_default_matmul_precision), bool(jax.config.jax_enable_x64)],
            "versions": [tljax.__version__, jax.__version__, source_digest(CODE)],
            "custom": plugins.hashes_of_types(getattr(node, "type", object) for node in network.graphdef.nodes),
        }

    def _compute(
        self,
        network: FrozenNetwork,
        variables: Variables,
        split: Split,
        name: str,
        num_views: int,
        out: Mapping[str, np.ndarray],
    ) -> None:
        images = split.images
        size = inference_batch_size(network.preprocess.side, self.mesh)
        augment = self.config.augment if num_views else None
        run = _compile(network, augment, self.spatial, op_files(augment) if augment else ())
        self.progress.start_task(name, max(1, num_views) * len(images))
        for view in range(max(1, num_views)):
            view_out = {n: x[view * len(images) : (view + 1) * len(images)] for n, x in out.items()}
            keys = self._view_keys(view)

            def compute(batch: dict, keys=keys) -> dict:
                return run(variables, batch["image"], next(keys))

            map_batches(compute, {"image": images}, size, self.mesh, view_out, self.progress.advance_task)

    def targets(
        self, split: Split, side: int, with_boundary_weights: bool = False, num_views: int = 0
    ) -> dict[str, np.ndarray]:
        """Return the targets of a split, transformed with the augmented images if masks or boxes move with them.

        Args:
          split: split with the images and labels.
          side: side of the network input in pixels.
          with_boundary_weights: whether to add `weight`, the pixel weights by distance from object boundaries.
          num_views: number of augmented views of each image; 0: images without augmentation.

        Returns:
          {name: [N, ...]}; with views of masks or boxes [num_views * N, ...], view by view.
        """
        images = split.images
        targets = split.targets(side)
        if with_boundary_weights:
            targets["weight"] = boundary_weights(split.labels)
        # A custom operation may change targets without locations too.
        if not num_views or not (self.spatial or self.config.augment.ops):
            return targets
        augment = jax.jit(make_augment(self.config.augment, side if self.spatial else None)["weak"])
        size = inference_batch_size(side, self.mesh)
        arrays = {"image": images, **targets}
        shapes = jax.eval_shape(augment, jax.random.key(0), {n: x[:1] for n, x in arrays.items()})
        out = {n: np.empty((num_views * len(images), *shapes[n].shape[1:]), x.dtype) for n, x in targets.items()}
        for view in range(num_views):
            view_out = {n: x[view * len(images) : (view + 1) * len(images)] for n, x in out.items()}
            keys = self._view_keys(view)

            def augment_targets(batch: dict, keys=keys) -> dict:
                batch = augment(next(keys), batch)
                return {n: batch[n] for n in targets}

            map_batches(augment_targets, arrays, size, self.mesh, view_out)
        return out

    def _view_keys(self, view: int) -> Iterator[jax.Array]:
        """Yield the random keys of the batches of a view."""
        key = jax.random.fold_in(jax.random.key(self.config.seed), view)
        return (jax.random.fold_in(key, i) for i in itertools.count())

    def summary(self) -> list[dict]:
        """Return the record with only the last of requests with the same name."""
        return list({row["what"]: row for row in reversed(self.record)}.values())[::-1]

    def _report(self, name: str, entry: CachedArrays, images: int, passes: float) -> None:
        size = sum(x.nbytes for x in entry.arrays.values())
        saved = entry.seconds * max(0.0, passes - (not entry.reused))
        row = {
            "what": name,
            "images": images,
            "bytes": size,
            "storage": entry.storage,
            "seconds": 0.0 if entry.reused else entry.seconds,
            "saved": saved,
        }
        self.record.append(row)
        origin = "read from the cache" if entry.reused else f"computed once in {entry.seconds:.1f} s"
        self.progress.print_note(
            f"{name}: features of {images:,} images, {size / 1e6:.3g} MB, {origin}; saves about {saved:.1f} s"
        )


@functools.lru_cache(maxsize=64)
def _compile(network: FrozenNetwork, augment: AugmentConfig | None, spatial: bool, files: tuple[str, ...]):
    # `files` are hashes of custom operations: a changed file is another program.
    side = network.preprocess.size if spatial else None
    crop_share = network.preprocess.crop_share
    augment_fn = make_augment(augment, side, crop_share)["weak"] if augment else lambda key, batch: batch

    def run(variables: Variables, images: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        return apply_frozen(network, variables, augment_fn(key, {"image": images})["image"])

    return jax.jit(run, compiler_options=inference_options())


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", text)
