"""Losses of a class at every place of a map.

Logits are [B, H, W, C], labels integers [B, H, W]. Places whose label is `IGNORED` count nowhere. Where no place
counts, a loss is 0, and so is its gradient.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from tljax.data.dataset import IGNORED
from tljax.losses.base import at_least_f32


def resize_logits(logits: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Logits [B, h, w, C] resized to [B, *shape, C], in float32 at least; bilinear, with centres half a pixel in.

    On a finer grid, values beyond the outermost centres are those of the edge; on a coarser one, what a pixel covers
    is averaged.
    """
    batch, _, _, classes = logits.shape
    return jax.image.resize(at_least_f32(logits), (batch, *shape, classes), "bilinear")


def cross_entropy(
    logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None, smoothing: float | jax.Array = 0.0
) -> jax.Array:
    """Mean cross-entropy of the places, in nats, against smoothed labels; with weights [C], a weighted mean.

    As `torch.nn.CrossEntropyLoss`: the target's share of every class is weighted, and the sum is divided by the
    weights of the labels.
    """
    counted, targets = _targets(logits, labels)
    weights = jnp.ones(logits.shape[-1], targets.dtype) if weights is None else weights
    losses = optax.softmax_cross_entropy(at_least_f32(logits), optax.smooth_labels(targets, smoothing) * weights)
    return _mean(jnp.where(counted, losses, 0), (targets * weights).sum(-1))


def weighted_cross_entropy(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """Mean over the places of the cross-entropy times weights [B, H, W] of the places, in nats.

    By the number of places it is divided, not by their weights: where they are heavy, the loss is larger.
    """
    counted, targets = _targets(logits, labels)
    losses = optax.softmax_cross_entropy(at_least_f32(logits), targets)
    return _mean(jnp.where(counted, losses * weights, 0), counted)


def focal(logits: jax.Array, labels: jax.Array, gamma: float | jax.Array = 2.0) -> jax.Array:
    """Mean of (1 - p)^gamma times the cross-entropy, p the label's probability (Lin et al. 2017, arXiv:1708.02002)."""
    counted, targets = _targets(logits, labels)
    logs = (targets * jax.nn.log_softmax(at_least_f32(logits))).sum(-1)
    # expm1 has a derivative where p is 1, and the base is never 0 for the power's.
    rest = jnp.maximum(-jnp.expm1(logs), jnp.finfo(logs.dtype).tiny)
    return _mean(jnp.where(counted, -(rest**gamma) * logs, 0), counted)


def dice(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """One minus the soft Dice coefficient of each class over the batch; mean over classes (Milletari et al. 2016).

    arXiv:1606.04797, with the sums and not the squares in the denominator. A class without a place in the batch has no
    loss of its own and counts in the mean, as in segmentation_models_pytorch.
    """
    counted, targets = _targets(logits, labels)
    chances = jax.nn.softmax(at_least_f32(logits)) * counted[..., None]
    shared, sizes = (chances * targets).sum((0, 1, 2)), (chances + targets).sum((0, 1, 2))
    present = targets.sum((0, 1, 2)) > 0
    return jnp.where(present, 1 - 2 * shared / jnp.where(present, sizes, 1), 0).mean()


def lovasz(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The Lovász-Softmax loss over the batch, mean over the classes that are there (Berman et al. 2018).

    arXiv:1705.08790: the Jaccard index as a function of the set of wrong places, extended to their probabilities.
    """
    counted, targets = _targets(logits, labels)
    chances = jax.nn.softmax(at_least_f32(logits))
    of_class = (x.reshape(-1, x.shape[-1]).T for x in (chances, targets))
    losses, present = jax.vmap(_lovasz, (0, 0, None))(*of_class, counted.ravel())
    return _mean(losses, present)


def _lovasz(chances: jax.Array, target: jax.Array, counted: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of one class, [N] each; and whether it is there."""
    errors = jnp.where(counted, jnp.abs(target - chances), 0)
    # What does not count goes to the end, where it adds nothing.
    order = jnp.argsort(jnp.where(counted, -errors, 1), stable=True)
    errors, target, counted = errors[order], target[order], counted[order]
    total = target.sum()
    shared = total - jnp.cumsum(target)
    union = total + jnp.cumsum((1 - target) * counted)
    jaccard = 1 - shared / jnp.maximum(union, 1)
    steps = jnp.diff(jaccard, prepend=0.0)
    present = total > 0
    return jnp.where(present, (errors * jax.lax.stop_gradient(steps)).sum(), 0), present


def _targets(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Which places count, and one-hot labels, 0 where they do not."""
    # There are data sets with a class 255, but none with a mask of it.
    counted = labels != IGNORED if labels.ndim > 1 else jnp.ones(labels.shape, bool)
    return counted, jax.nn.one_hot(jnp.where(counted, labels, -1), logits.shape[-1], dtype=at_least_f32(logits).dtype)


def _mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    """The sum of the values over that of the weights, 0 where that is 0."""
    total = weights.sum(dtype=values.dtype)
    return values.sum() / jnp.where(total > 0, total, 1)
