"""What a phase computes once and keeps: what frozen networks say of the pictures, and why, or why not."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

import tljax
from tljax.augment.pipeline import make_augment
from tljax.config import AugmentConfig, Config
from tljax.data import Split
from tljax.distributed.mesh import DeviceMesh
from tljax.errors import UserError
from tljax.features.extract import map_batches
from tljax.features.frozen_network import FROZEN_STAGES, FrozenNetwork, apply_frozen, output_shapes
from tljax.losses.weight_maps import boundary_weights
from tljax.models.params import Variables
from tljax.ops.convolution import inference_options
from tljax.storage import cache_dir
from tljax.storage.array_cache import ArrayCache, CachedArrays
from tljax.storage.source_digest import source_digest
from tljax.tasks import Task, task_of
from tljax.train.callbacks import ProgressReporter
from tljax.train.step import StepSpec
from tljax.weights import params_hash

# The largest map of a batch that networks are run on in inference mode: beyond it nothing gets faster.
MAX_BATCH_BYTES = 1 << 26
# What computes features: other code may compute others.
CODE = ("tljax.features.frozen_network", "tljax.augment.pipeline")


@dataclasses.dataclass(frozen=True)
class CachePlan:
    """What is kept in a phase.

    Attributes:
      train: networks whose outputs for the training pictures are computed once.
      in_step: networks that every step runs.
      valid: the frozen first stages, where their maps of the validation pictures are computed once.
      views: how many times a training picture is drawn; 0: pictures stay as they are.
      train_bytes: for the training pictures.
      valid_bytes: for the validation pictures.
      why: one clause about the frozen first stages.
    """

    cached: tuple[FrozenNetwork, ...] = ()
    recomputed: tuple[FrozenNetwork, ...] = ()
    cached_valid: FrozenNetwork | None = None
    num_views: int = 0
    cached_bytes: int = 0
    cached_valid_bytes: int = 0
    reason: str = "nothing is frozen before the first stage that learns"

    def describe(self) -> str:
        """What is kept of the frozen first stages, and why."""
        if self.reason == CachePlan.reason:
            return f"none: {self.reason}"
        train = "recomputed in every step"
        if any(network.name == FROZEN_STAGES for network in self.cached):
            train = f"{self.num_views} views computed once" if self.num_views else "computed once"
        valid = "computed once" if self.cached_valid else "recomputed"
        megabytes = (self.cached_bytes + self.cached_valid_bytes) / 1e6
        return f"training {train} ({self.reason}), validation {valid}; {megabytes:.3g} MB"


def has_augmentation(augment: AugmentConfig) -> bool:
    """Whether the training pictures change from step to step."""
    still = AugmentConfig(strong_magnitude=augment.strong_magnitude)  # which is for unlabelled pictures
    return augment != still


def plan_cache(
    config: Config,
    phase: str,
    prefix: FrozenNetwork | None,
    others: Sequence[FrozenNetwork],
    sizes: Mapping[str, int],
    pictures: tuple[int, int],
    unlabelled: bool,
) -> CachePlan:
    """Decides what a phase keeps.

    Args:
      config: of the run.
      phase: its name.
      prefix: the frozen first stages as a network, where there are any.
      others: teachers, and the source.
      sizes: bytes that the outputs for one picture take, by the network's name.
      pictures: how many there are for training and for validation.
      unlabelled: whether the student looks at unlabelled pictures too.

    Raises:
      UserError: `cache.num_views` is asked for, and does not fit.
    """
    keep, limit, drawn = config.cache, config.cache.max_gb * 1e9, has_augmentation(config.augment)
    networks = ([prefix] if prefix is not None and not unlabelled else []) + list(others)
    # Others see the student's own pictures: kept views are for all of them, or for none.
    views = keep.num_views if drawn and prefix is not None and not unlabelled else 0
    if views:
        needed = sum(sizes[n.name] for n in networks) * pictures[0] * views
        if keep.storage == "none" or needed > limit:
            asked = "cache.storage='none' keeps nothing" if keep.storage == "none" else f"that is more than {limit:.3g}"
            raise UserError(
                f'Phase "{phase}": cache.num_views={views} takes {needed:.3g} bytes, but {asked}: lower it, or raise '
                "cache.max_gb."
            )
    kept, in_step, why, left = [], [], CachePlan.reason, limit
    for network in networks:
        size = sizes[network.name] * pictures[0] * max(1, views)
        against = _against(keep.storage, drawn and not views, size, left)
        (in_step if against else kept).append(network)
        left -= 0 if against else size
        if network is prefix:
            why = against or (f"{views} drawn views of each picture" if views else "the pictures stay the same")
    if prefix is not None and unlabelled:
        why = "views of unlabelled pictures are drawn anew in every step"
    valid_bytes = sizes[FROZEN_STAGES] * pictures[1] if prefix is not None else 0
    valid = None if prefix is None or _against(keep.storage, False, valid_bytes, left) else prefix
    train_bytes = sum(sizes[n.name] for n in kept) * pictures[0] * max(1, views)
    return CachePlan(tuple(kept), tuple(in_step), valid, views, train_bytes, valid_bytes if valid else 0, why)


def _against(where: str, drawn: bool, size: int, left: float) -> str | None:
    """What speaks against keeping the outputs of a network, or None."""
    if where == "none":
        return "cache.storage is none"
    if drawn:
        return "pictures are drawn anew in every step; cache.num_views would keep some of each"
    return None if size <= left else f"{size / 1e9:.3g} GB are more than what cache.max_gb leaves"


class FeatureCache:
    """Computes what is kept, or finds it.

    Args:
      config: of the run.
      mesh: the devices.
      log: told of the work.

    Attributes:
      record: what was asked for, as result.json has it.
    """

    def __init__(self, config: Config, mesh: DeviceMesh, log: ProgressReporter):
        self.config, self.mesh, self.log, self.record = config, mesh, log, []
        self.store = ArrayCache(config.cache, cache_dir.cache_dir("features"))

    def get(
        self, network: FrozenNetwork, leaves: Variables, split: Split, what: str, views: int = 0, passes: float = 1.0
    ) -> dict[str, np.ndarray]:
        """What a network says of all pictures, by name as in `observe`, in their order; with `views`, view after view.

        Args:
          network: whose outputs.
          leaves: of the network, on the mesh.
          split: pictures.
          what: name of the work for the log.
          views: how many times each picture is drawn; 0: as it is.
          passes: how often all of that would be computed if it were not kept.
        """
        images = split.images
        count, drawn = max(1, views) * len(images), None
        shapes = output_shapes(network, leaves, images.shape[1:])
        shapes = {n: jax.ShapeDtypeStruct((count, *s.shape), s.dtype) for n, s in shapes.items()}
        size = inference_batch_size(network.preprocess.size, self.mesh)
        if views:
            drawn = {"count": views, "seed": self.config.seed, "batch": size, "augment": repr(self.config.augment)}

        def fill(out: Mapping[str, np.ndarray]) -> None:
            self.log.start_task(what, count)
            for view in range(max(1, views)):
                part = {name: x[view * len(images) : (view + 1) * len(images)] for name, x in out.items()}
                run = _observer(network, self.config.augment if views else None, self.task.spatial)
                keys = self._keys(view)
                map_batches(
                    lambda b, run=run, keys=keys: run(leaves, b["image"], next(keys)),
                    {"image": images},
                    size,
                    self.mesh,
                    part,
                    self.log.advance_task,
                )

        key = {
            "network": hashlib.sha256(_without_addresses(repr(network)).encode()).hexdigest(),
            "leaves": params_hash(leaves),
            "images": split.fingerprint,
            "views": drawn,
            "device": jax.devices()[0].device_kind,
            "products": [str(jax.config.jax_default_matmul_precision), bool(jax.config.jax_enable_x64)],
            "versions": [tljax.__version__, jax.__version__, source_digest(CODE)],
        }
        entry = self.store.get(key, shapes, fill)
        self._tell(what, entry, count, passes)
        return entry.arrays

    def targets(self, spec: StepSpec, split: Split, views: int = 0) -> dict[str, np.ndarray]:
        """What a step's batches have of a split besides pictures; of kept `views`, as it lies in each of them."""
        side, images = spec.preprocess.size, split.images
        targets = split.targets(side)
        if "boundary_weights" in spec.requires:
            targets["weight"] = boundary_weights(split.labels)
        if not views or not self.task.spatial:
            return targets
        change = jax.jit(make_augment(spec.augment, side)["weak"])
        size = inference_batch_size(side, self.mesh)
        of_row = jax.eval_shape(change, jax.random.key(0), {n: x[:1] for n, x in (targets | {"image": images}).items()})
        drawn = {n: np.empty((views * len(images), *of_row[n].shape[1:]), x.dtype) for n, x in targets.items()}
        for view in range(views):
            part = {name: x[view * len(images) : (view + 1) * len(images)] for name, x in drawn.items()}
            keys = self._keys(view)

            def moved(batch: dict, keys=keys) -> dict:
                changed = change(next(keys), batch)
                return {name: changed[name] for name in targets}

            map_batches(moved, {"image": images, **targets}, size, self.mesh, part)
        return drawn

    @property
    def task(self) -> Task:
        """Of the run."""
        return task_of(self.config)

    def _keys(self, view: int) -> Iterator[jax.Array]:
        """A key for each batch of a view."""
        key = jax.random.fold_in(jax.random.key(self.config.seed), view)
        return (jax.random.fold_in(key, i) for i in itertools.count())

    def summary(self) -> list[dict]:
        """The record, without what was asked for again."""
        return list({row["what"]: row for row in reversed(self.record)}.values())[::-1]

    def _tell(self, what: str, entry: CachedArrays, pictures: int, passes: float) -> None:
        size = sum(x.nbytes for x in entry.arrays.values())
        saved = entry.seconds * max(0.0, passes - (not entry.reused))
        self.record.append(
            {
                "what": what,
                "images": pictures,
                "bytes": size,
                "storage": entry.storage,
                "seconds": 0.0 if entry.reused else entry.seconds,
                "saved": saved,
            }
        )
        how = "were kept" if entry.reused else f"kept in {'memory' if entry.storage == 'memory' else 'a file'} after"
        took = "" if entry.reused else f" {entry.seconds:.1f} s"
        self.log.note(
            f"{what}: features of {pictures:,} pictures, {size / 1e6:.3g} MB, {how}{took}; saves about {saved:.1f} s"
        )


def inference_batch_size(side: int, mesh: DeviceMesh) -> int:
    """Pictures of a batch in inference mode, by the input's side: as if the first map had 64 channels a pixel."""
    return mesh.round_up(max(8, min(512, MAX_BATCH_BYTES // (4 * 64 * side**2))))


@functools.lru_cache(maxsize=64)
def _observer(network: FrozenNetwork, augment: AugmentConfig | None, located: bool):
    change = (
        make_augment(augment, network.preprocess.size if located else None)["weak"] if augment else lambda key, x: x
    )

    def run(leaves: Variables, images: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        return apply_frozen(network, leaves, change(key, {"image": images})["image"])

    return jax.jit(run, compiler_options=inference_options())


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", text)
