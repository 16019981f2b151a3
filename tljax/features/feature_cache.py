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

# The modules that compute features: a change of any file that they import makes cached features new.
CODE = ("tljax.features.frozen_network", "tljax.augment.pipeline")


class FeatureCache:
    """Computes the outputs of frozen networks, or reads them from the cache.

    Args:
      config: of the run.
      mesh: the devices.
      progress: receives the work, as `tljax.train.callbacks.ProgressReporter`.

    Attributes:
      record: a row for each request, as result.json holds it.
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
    ) -> dict[str, np.ndarray]:
        """Return the outputs of a frozen network for a whole split, from the cache if possible.

        Args:
          network: whose outputs.
          variables: of the network, on the devices.
          split: whose images.
          name: of the work, for progress and record.
          num_views: augmented views of each image; 0: the images as they are.
          passes: how often the outputs would be computed without the cache.

        Returns:
          {name: [N, ...]}, with names as in `apply_frozen`; with views [num_views * N, ...], view by view. They are
          computed once per content of network, images and augmentation.
        """
        count = max(1, num_views) * len(split.images)
        shapes = output_shapes(network, variables, split.images.shape[1:])
        shapes = {n: jax.ShapeDtypeStruct((count, *s.shape), s.dtype) for n, s in shapes.items()}
        fill = functools.partial(self._compute, network, variables, split, name, num_views)
        entry = self.store.get(self._key(network, variables, split, num_views), shapes, fill)
        self._report(name, entry, count, passes)
        return entry.arrays

    def _key(self, network: FrozenNetwork, variables: Variables, split: Split, num_views: int) -> dict:
        """Return everything that the outputs depend on."""
        views = None
        if num_views:
            size = inference_batch_size(network.preprocess.size, self.mesh)
            views = {"count": num_views, "seed": self.config.seed, "batch": size, "augment": repr(self.config.augment)}
        return {
            "network": hashlib.sha256(_without_addresses(repr(network)).encode()).hexdigest(),
            "variables": params_hash(variables),
            "images": split.fingerprint,
            "views": views,
            "device": jax.devices()[0].device_kind,
            "products": [str(jax.config.jax_default_matmul_precision), bool(jax.config.jax_enable_x64)],
            "versions": [tljax.__version__, jax.__version__, source_digest(CODE)],
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
        size = inference_batch_size(network.preprocess.size, self.mesh)
        run = _compile(network, self.config.augment if num_views else None, self.spatial)
        self.progress.start_task(name, max(1, num_views) * len(images))
        for view in range(max(1, num_views)):
            part = {n: x[view * len(images) : (view + 1) * len(images)] for n, x in out.items()}
            keys = self._view_keys(view)

            def compute(batch: dict, keys=keys) -> dict:
                return run(variables, batch["image"], next(keys))

            map_batches(compute, {"image": images}, size, self.mesh, part, self.progress.advance_task)

    def targets(
        self, split: Split, side: int, with_boundary_weights: bool = False, num_views: int = 0
    ) -> dict[str, np.ndarray]:
        """Return the targets of a split for an input of so many pixels a side; with views, those of each view."""
        images = split.images
        targets = split.targets(side)
        if with_boundary_weights:
            targets["weight"] = boundary_weights(split.labels)
        if not num_views or not self.spatial:
            return targets
        augment = jax.jit(make_augment(self.config.augment, side)["weak"])
        size = inference_batch_size(side, self.mesh)
        arrays = {"image": images, **targets}
        shapes = jax.eval_shape(augment, jax.random.key(0), {n: x[:1] for n, x in arrays.items()})
        out = {n: np.empty((num_views * len(images), *shapes[n].shape[1:]), x.dtype) for n, x in targets.items()}
        for view in range(num_views):
            part = {n: x[view * len(images) : (view + 1) * len(images)] for n, x in out.items()}
            keys = self._view_keys(view)

            def augmented(batch: dict, keys=keys) -> dict:
                batch = augment(next(keys), batch)
                return {n: batch[n] for n in targets}

            map_batches(augmented, arrays, size, self.mesh, part)
        return out

    def _view_keys(self, view: int) -> Iterator[jax.Array]:
        """Yield the random key of each batch of a view."""
        key = jax.random.fold_in(jax.random.key(self.config.seed), view)
        return (jax.random.fold_in(key, i) for i in itertools.count())

    def summary(self) -> list[dict]:
        """Return the record without repeated requests."""
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
        took = "read from the cache" if entry.reused else f"computed once in {entry.seconds:.1f} s"
        self.progress.note(
            f"{name}: features of {images:,} images, {size / 1e6:.3g} MB, {took}; saves about {saved:.1f} s"
        )


@functools.lru_cache(maxsize=64)
def _compile(network: FrozenNetwork, augment: AugmentConfig | None, spatial: bool):
    side = network.preprocess.size if spatial else None
    change = make_augment(augment, side)["weak"] if augment else lambda key, batch: batch

    def run(variables: Variables, images: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        return apply_frozen(network, variables, change(key, {"image": images})["image"])

    return jax.jit(run, compiler_options=inference_options())


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", text)
