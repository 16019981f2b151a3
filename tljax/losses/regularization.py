"""Objectives of the weights themselves. They are in the loss, unlike the optimizer's decoupled decay."""

from __future__ import annotations

import jax

from tljax.losses.base import Batch, HParams, Outputs, References, at_least_f32, half_sq_norm, loss, sum_or_zero


@loss()
def l2(outputs: Outputs, batch: Batch, reference: References, hyper: HParams) -> jax.Array:
    """Half the squared norm of the learning kernels, leaves of two or more axes.

    Leaves that `reference` has a source value of are left to `l2_sp`, so that the two together are the penalty of Li et
    al. 2018 (arXiv:1802.01483): new layers shrink, pretrained ones stay near where they started.
    """
    kept = reference.get("leaves", {})
    return sum_or_zero(
        half_sq_norm(leaf) for path, leaf in outputs["leaves"].items() if leaf.ndim > 1 and path not in kept
    )


@loss("source_leaves")
def l2_sp(outputs: Outputs, batch: Batch, reference: References, hyper: HParams) -> jax.Array:
    """Half the squared distance of the learning leaves from their source values, L2-SP.

    Li, Grandvalet & Davoine 2018, arXiv:1802.01483. All leaves that have a source value count, those of one axis too.
    """
    kept = reference["leaves"]
    return sum_or_zero(
        half_sq_norm(at_least_f32(x) - at_least_f32(kept[path]))
        for path, x in outputs["leaves"].items()
        if path in kept
    )
