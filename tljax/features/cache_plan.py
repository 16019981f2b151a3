"""Decision which outputs of frozen networks a phase caches instead of computing them in every step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from tljax.config import AugmentConfig, Config
from tljax.errors import UserError
from tljax.features.frozen_network import FROZEN_STAGES, FrozenNetwork


class _Sizes(Protocol):
    @property
    def train(self) -> int: ...

    @property
    def valid(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class CachePlan:
    """The cached outputs of frozen networks in a phase.

    Attributes:
      cached: networks whose outputs for the training images are computed once and cached.
      recomputed: networks that run in every step.
      cached_valid: the frozen stages if their features of the validation images are cached, else None.
      num_views: number of cached augmented views of each training image; 0: images are not augmented.
      cached_bytes: size of the cached outputs for the training images.
      cached_valid_bytes: size of the cached features of the validation images.
      reason: why the frozen stages are cached or not.
    """

    cached: tuple[FrozenNetwork, ...] = ()
    recomputed: tuple[FrozenNetwork, ...] = ()
    cached_valid: FrozenNetwork | None = None
    num_views: int = 0
    cached_bytes: int = 0
    cached_valid_bytes: int = 0
    reason: str = "no stage is frozen before the first trainable one"

    def describe(self) -> str:
        """Return a line about the caching of the frozen stages and its reason."""
        if self.reason == CachePlan.reason:
            return f"none: {self.reason}"
        train = "recomputed in every step"
        if any(network.name == FROZEN_STAGES for network in self.cached):
            train = f"{self.num_views} views computed once" if self.num_views else "computed once"
        valid = "computed once" if self.cached_valid else "recomputed"
        megabytes = (self.cached_bytes + self.cached_valid_bytes) / 1e6
        return f"training {train} ({self.reason}), validation {valid}; {megabytes:.3g} MB"


def has_augmentation(augment: AugmentConfig) -> bool:
    """Return whether the training images change from step to step."""
    # strong_magnitude affects only unlabelled images.
    return augment != AugmentConfig(strong_magnitude=augment.strong_magnitude)


def plan_cache(
    config: Config,
    phase: str,
    backbone: FrozenNetwork | None,
    others: Sequence[FrozenNetwork],
    sizes: _Sizes,
    unlabelled: bool,
) -> CachePlan:
    """Return which frozen networks a phase caches.

    Args:
      config: the config of the run.
      phase: name of the phase, for errors.
      backbone: the frozen stages of the student, or None.
      others: teachers and the source network.
      sizes: numbers of training and validation images.
      unlabelled: whether the student also trains on unlabelled images.

    Raises:
      UserError: `cache.num_views` is set, but the views cannot be cached.
    """
    cache = config.cache
    augmented = has_augmentation(config.augment)
    networks = [*([backbone] if backbone is not None and not unlabelled else []), *others]
    # Teachers receive the same augmented images as the student: all networks use the cached views, or none does.
    views = cache.num_views if augmented and backbone is not None and not unlabelled else 0
    copies = sizes.train * max(1, views)
    if views:
        _check_views_fit(config, phase, sum(n.output_bytes for n in networks) * copies)
    cached, recomputed = [], []
    available = cache.max_gb * 1e9
    reason = "views of unlabelled images are drawn anew in every step" if backbone is not None else CachePlan.reason
    for network in networks:
        size = network.output_bytes * copies
        obstacle = _obstacle(cache.storage, augmented and not views, size, available)
        (recomputed if obstacle else cached).append(network)
        available -= 0 if obstacle else size
        if network is backbone:
            reason = obstacle or (f"{views} augmented views of each image" if views else "the images are not augmented")
    valid_bytes = backbone.output_bytes * sizes.valid if backbone is not None else 0
    cache_valid = backbone is not None and not _obstacle(cache.storage, False, valid_bytes, available)
    return CachePlan(
        cached=tuple(cached),
        recomputed=tuple(recomputed),
        cached_valid=backbone if cache_valid else None,
        num_views=views,
        cached_bytes=sum(n.output_bytes for n in cached) * copies,
        cached_valid_bytes=valid_bytes if cache_valid else 0,
        reason=reason,
    )


def _check_views_fit(config: Config, phase: str, needed: int) -> None:
    cache = config.cache
    limit = cache.max_gb * 1e9
    if cache.storage != "none" and needed <= limit:
        return
    reason = "cache.storage='none' caches nothing" if cache.storage == "none" else f"that is more than {limit:.3g}"
    raise UserError(
        f'Phase "{phase}": cache.num_views={cache.num_views} takes {needed:.3g} bytes, but {reason}: lower it, or '
        "raise cache.max_gb."
    )


def _obstacle(storage: str, augmented: bool, size: int, available: float) -> str | None:
    """Return why `size` bytes of outputs cannot be cached, or None if they can."""
    if storage == "none":
        return "cache.storage is none"
    if augmented:
        return "images are augmented anew in every step; cache.num_views would cache some views of each"
    return None if size <= available else f"{size / 1e9:.3g} GB are more than cache.max_gb leaves"
