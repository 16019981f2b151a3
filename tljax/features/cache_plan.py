"""Which outputs of frozen networks a phase computes once instead of in every step, and why, or why not."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from tljax.config import AugmentConfig, Config
from tljax.errors import UserError
from tljax.features.frozen_network import FROZEN_STAGES, FrozenNetwork


class _Sizes(Protocol):
    train: int
    valid: int


@dataclasses.dataclass(frozen=True)
class CachePlan:
    """What a phase computes once.

    Attributes:
      cached: networks whose outputs for the training images are computed once.
      recomputed: networks that every step runs.
      cached_valid: the frozen stages, if their features of the validation images are computed once.
      num_views: augmented views of each training image that are cached; 0: images are not augmented.
      cached_bytes: of the training images.
      cached_valid_bytes: of the validation images.
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
        """Return what is cached of the frozen stages, and why."""
        if self.reason == CachePlan.reason:
            return f"none: {self.reason}"
        train = "recomputed in every step"
        if any(network.name == FROZEN_STAGES for network in self.cached):
            train = f"{self.num_views} views computed once" if self.num_views else "computed once"
        valid = "computed once" if self.cached_valid else "recomputed"
        megabytes = (self.cached_bytes + self.cached_valid_bytes) / 1e6
        return f"training {train} ({self.reason}), validation {valid}; {megabytes:.3g} MB"


def has_augmentation(augment: AugmentConfig) -> bool:
    """Whether the training images change from step to step."""
    unchanged = AugmentConfig(strong_magnitude=augment.strong_magnitude)  # which is for unlabelled images
    return augment != unchanged


def plan_cache(
    config: Config,
    phase: str,
    backbone: FrozenNetwork | None,
    others: Sequence[FrozenNetwork],
    sizes: _Sizes,
    unlabelled: bool,
) -> CachePlan:
    """Decide what a phase computes once.

    Args:
      config: of the run.
      phase: its name.
      backbone: the frozen stages of the student, if there are any.
      others: teachers, and the source network.
      sizes: number of images for training and validation.
      unlabelled: whether the student also trains on unlabelled images.

    Raises:
      UserError: `cache.num_views` is asked for, and does not fit.
    """
    cache, limit = config.cache, config.cache.max_gb * 1e9
    augmented = has_augmentation(config.augment)
    networks = [*([backbone] if backbone is not None and not unlabelled else []), *others]
    # Teachers see the same augmented images as the student: all of them use the cached views, or none.
    views = cache.num_views if augmented and backbone is not None and not unlabelled else 0
    copies = sizes.train * max(1, views)
    if views:
        _check_views_fit(config, phase, sum(n.output_bytes for n in networks) * copies)
    cached, recomputed, reason, left = [], [], CachePlan.reason, limit
    for network in networks:
        size = network.output_bytes * copies
        obstacle = _obstacle(cache.storage, augmented and not views, size, left)
        if obstacle:
            recomputed.append(network)
        else:
            cached.append(network)
            left -= size
        if network is backbone:
            kept = f"{views} augmented views of each image" if views else "the images are not augmented"
            reason = obstacle or kept
    if backbone is not None and unlabelled:
        reason = "views of unlabelled images are drawn anew in every step"
    valid_bytes = backbone.output_bytes * sizes.valid if backbone is not None else 0
    cache_valid = backbone is not None and not _obstacle(cache.storage, False, valid_bytes, left)
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
    cache, limit = config.cache, config.cache.max_gb * 1e9
    if cache.storage != "none" and needed <= limit:
        return
    why = "cache.storage='none' caches nothing" if cache.storage == "none" else f"that is more than {limit:.3g}"
    raise UserError(
        f'Phase "{phase}": cache.num_views={cache.num_views} takes {needed:.3g} bytes, but {why}: lower it, or raise '
        "cache.max_gb."
    )


def _obstacle(storage: str, augmented: bool, size: int, left: float) -> str | None:
    """Return why the outputs of a network cannot be cached, or None."""
    if storage == "none":
        return "cache.storage is none"
    if augmented:
        return "images are augmented anew in every step; cache.num_views would cache some views of each"
    return None if size <= left else f"{size / 1e9:.3g} GB are more than cache.max_gb leaves"
