"""Classification losses over pixels (or images).

Logits are [B, H, W, C], labels integers [B, H, W]. Pixels labelled `IGNORED` contribute nothing. If all pixels are
ignored, the loss and its gradient are 0.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from tljax.data.dataset import IGNORED
from tljax.losses.base import at_least_f32


def resize_logits(logits: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Resize logits [B, h, w, C] to [B, *shape, C] bilinearly with half-pixel centers, in float32 or wider.

    Upsampling repeats the edge values beyond the outermost pixel centers; downsampling is antialiased.
    """
    batch, _, _, classes = logits.shape
    return jax.image.resize(at_least_f32(logits), (batch, *shape, classes), "bilinear")


def cross_entropy(
    logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None, smoothing: float | jax.Array = 0.0
) -> jax.Array:
    """Return the mean cross-entropy in nats against smoothed labels.

    With weights it matches `torch.nn.CrossEntropyLoss`: each class's share of the target is weighted, and the sum is
    divided by the sum of the labels' weights.

    Args:
      logits: [B, H, W, C] or [B, C].
      labels: integers [B, H, W] or [B].
      weights: class weights [C].
      smoothing: share of the target that is spread evenly over all classes.
    """
    valid, targets = _valid_and_one_hot(logits, labels)
    weights = jnp.ones(logits.shape[-1], targets.dtype) if weights is None else weights
    losses = optax.softmax_cross_entropy(at_least_f32(logits), optax.smooth_labels(targets, smoothing) * weights)
    return _divided_sum(jnp.where(valid, losses, 0), (targets * weights).sum(-1))


def weighted_cross_entropy(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """Return the mean over pixels of the cross-entropy times pixel weights [B, H, W], in nats.

    The sum is divided by the number of pixels, not by their weights: larger weights give a larger loss.
    """
    valid, targets = _valid_and_one_hot(logits, labels)
    losses = optax.softmax_cross_entropy(at_least_f32(logits), targets)
    return _divided_sum(jnp.where(valid, losses * weights, 0), valid)


def focal(logits: jax.Array, labels: jax.Array, gamma: float | jax.Array = 2.0) -> jax.Array:
    """Return the mean of (1 - p)^gamma times the cross-entropy, with p the label's probability (Lin et al. 2017).

    arXiv:1708.02002.
    """
    valid, targets = _valid_and_one_hot(logits, labels)
    log_p = (targets * jax.nn.log_softmax(at_least_f32(logits))).sum(-1)
    # expm1 is differentiable at p = 1, and the bound keeps the base of the power above 0.
    one_minus_p = jnp.maximum(-jnp.expm1(log_p), jnp.finfo(log_p.dtype).tiny)
    return _divided_sum(jnp.where(valid, -(one_minus_p**gamma) * log_p, 0), valid)


def dice(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return one minus the soft Dice coefficient of each class over the batch, mean over classes.

    Milletari et al. 2016, arXiv:1606.04797, with sums in place of squares in the denominator. A class that is absent
    from the batch has loss 0 and counts in the mean, as in segmentation_models_pytorch.
    """
    valid, targets = _valid_and_one_hot(logits, labels)
    probabilities = jax.nn.softmax(at_least_f32(logits)) * valid[..., None]
    intersection = (probabilities * targets).sum((0, 1, 2))
    total = (probabilities + targets).sum((0, 1, 2))
    present = targets.sum((0, 1, 2)) > 0
    return jnp.where(present, 1 - 2 * intersection / jnp.where(present, total, 1), 0).mean()


def lovasz(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the Lovász-Softmax loss over the batch, mean over the classes in the labels (Berman et al. 2018).

    arXiv:1705.08790: the Lovász extension of the Jaccard index from sets of misclassified pixels to probabilities.
    """
    valid, targets = _valid_and_one_hot(logits, labels)
    probabilities = jax.nn.softmax(at_least_f32(logits))
    probabilities, targets = (x.reshape(-1, x.shape[-1]).T for x in (probabilities, targets))
    losses, present = jax.vmap(_lovasz_of_class, (0, 0, None))(probabilities, targets, valid.ravel())
    return _divided_sum(losses, present)


def _lovasz_of_class(probabilities: jax.Array, target: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the loss of one class, and whether the labels contain it; arguments are [N]."""
    errors = jnp.where(valid, jnp.abs(target - probabilities), 0)
    # Ignored pixels are sorted to the end, where they add nothing.
    order = jnp.argsort(jnp.where(valid, -errors, 1), stable=True)
    errors = errors[order]
    target = target[order]
    valid = valid[order]
    total = target.sum()
    intersection = total - jnp.cumsum(target)
    union = total + jnp.cumsum((1 - target) * valid)
    jaccard = 1 - intersection / jnp.maximum(union, 1)
    steps = jnp.diff(jaccard, prepend=0.0)
    present = total > 0
    return jnp.where(present, (errors * jax.lax.stop_gradient(steps)).sum(), 0), present


def _valid_and_one_hot(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return which labels are not ignored, and one-hot labels, all 0 where they are."""
    # Only masks have ignored pixels: in classification, 255 is an ordinary class.
    valid = labels != IGNORED if labels.ndim > 1 else jnp.ones(labels.shape, bool)
    return valid, jax.nn.one_hot(jnp.where(valid, labels, -1), logits.shape[-1], dtype=at_least_f32(logits).dtype)


def _divided_sum(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Return the sum of the values divided by the sum of the weights, or 0 if all weights are 0."""
    total = weights.sum(dtype=values.dtype)
    return values.sum() / jnp.where(total > 0, total, 1)
