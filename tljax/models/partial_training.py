"""A mixin for convolutions and dense layers: train single output channels, and observe the outputs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
from flax import nnx


class TrainableChannels(NamedTuple):
    """The output channels of a layer that are trained while its other channels are frozen.

    Attributes:
      kernel: the part of the layer's kernel for these channels, [..., k].
      index: the channels, int32 [k].
    """

    kernel: jax.Array
    index: jax.Array


class PartiallyTrainable:
    """Mixin placed before a Flax layer in the bases; it does not change the layer's outputs.

    Attributes:
      channels: set by `train_channels`; None: the whole kernel is trained.
      on_output: called with every output; None: not used.
    """

    kernel: nnx.Param
    channels: TrainableChannels | None = None
    on_output: Callable[[jax.Array], None] | None = None

    def train_channels(self, channels: TrainableChannels) -> None:
        """Route the kernel's gradient to `channels` only, at k / out of its cost.

        The layer's kernel must already contain the values of `channels.kernel`.
        """
        # Single channels of a grouped convolution do not form a convolution with as many groups. Grouped convolutions
        # are left unchanged: the gradient of the whole kernel is computed and flows to what it was assembled from.
        if getattr(self, "feature_group_count", 1) == 1:
            self.kernel.set_value(jax.lax.stop_gradient(self.kernel.get_value()))
            self.channels = nnx.data(channels)

    def apply_kernel(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """Apply the layer without its bias and with another kernel, [..., any]."""
        raise NotImplementedError

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, ..., in] → [B, ..., out]."""
        y = super().__call__(x)  # pyright: ignore[reportAttributeAccessIssue]  # of the Flax layer
        if self.channels is not None:
            y = _route_gradient(self.apply_kernel, y, x, self.channels)
        if self.on_output is not None:
            self.on_output(y)
        return y


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _route_gradient(linear, y: jax.Array, x: jax.Array, channels: TrainableChannels) -> jax.Array:
    """Return `y`; its gradient at `channels.index` also flows to `channels.kernel`, as that of `linear(x, kernel)`."""
    return y


def _route_gradient_forward(linear, y: jax.Array, x: jax.Array, channels: TrainableChannels):
    return y, (x, channels)


def _route_gradient_backward(linear, residuals, dy: jax.Array):
    x, channels = residuals
    (kernel,) = jax.linear_transpose(lambda k: linear(x, k), channels.kernel)(dy[..., channels.index])
    return dy, None, channels._replace(kernel=kernel, index=None)


_route_gradient.defvjp(_route_gradient_forward, _route_gradient_backward)
