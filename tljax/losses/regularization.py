"""Penalties on the parameters. They are part of the loss, unlike the optimizer's decoupled weight decay."""

from __future__ import annotations

import jax

from tljax.losses.base import Batch, HParams, Outputs, References, at_least_f32, half_sq_norm, loss, sum_or_zero


@loss()
def l2(outputs: Outputs, batch: Batch, references: References, hparams: HParams) -> jax.Array:
    """Half the squared norm of the trainable kernels (parameters of two or more axes).

    Parameters with a pretrained value in `references` are left to `l2_sp`, so that the two together are the penalty of
    Li et al. 2018 (arXiv:1802.01483): new layers shrink, pretrained ones stay near their initial values.
    """
    pretrained = references.get("params", {})
    return sum_or_zero(
        half_sq_norm(param) for path, param in outputs["params"].items() if param.ndim > 1 and path not in pretrained
    )


@loss("source_params")
def l2_sp(outputs: Outputs, batch: Batch, references: References, hparams: HParams) -> jax.Array:
    """Half the squared distance of the trainable parameters from their pretrained values, L2-SP.

    Li, Grandvalet & Davoine 2018, arXiv:1802.01483. Covers every parameter with a pretrained value, biases and norm
    scales included.
    """
    pretrained = references["params"]
    return sum_or_zero(
        half_sq_norm(at_least_f32(param) - at_least_f32(pretrained[path]))
        for path, param in outputs["params"].items()
        if path in pretrained
    )
