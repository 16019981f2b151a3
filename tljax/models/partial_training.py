"""What convolutions and dense layers have in common: output channels can learn alone, and the output can be watched."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
from flax import nnx


class TrainableChannels(NamedTuple):
    """The output channels of a layer that learn while the others stand still.

    Attributes:
      kernel: their part of the layer's kernel, [..., k].
      index: which they are, int32 [k].
    """

    kernel: jax.Array
    index: jax.Array


class PartiallyTrainable:
    """Stands in front of flax's layer, and leaves what it computes as it is.

    Attributes:
      neurons: set by `learn`; None: the kernel is a leaf like any other.
      watch: called with every output; None: nobody is.
    """

    channels: TrainableChannels | None = None
    on_output: Callable[[jax.Array], None] | None = None

    def train_channels(self, neurons: TrainableChannels) -> None:
        """Gives the kernel's gradient to `neurons` alone, at k / out of its cost; it already holds their part."""
        # Single channels of a grouped convolution are no convolution in as many groups. There nothing changes: the
        # whole kernel's gradient is computed, and flows on to what the kernel was put together from.
        if getattr(self, "feature_group_count", 1) == 1:
            self.kernel.set_value(jax.lax.stop_gradient(self.kernel.get_value()))
            self.channels = nnx.data(neurons)

    def apply_kernel(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """The layer without its bias and with another kernel, [..., any]."""
        raise NotImplementedError

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, ..., in] → [B, ..., out]."""
        y = super().__call__(x)
        if self.channels is not None:
            y = _route_gradient(self.apply_kernel, y, x, self.channels)
        if self.on_output is not None:
            self.on_output(y)
        return y


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _route_gradient(linear, y: jax.Array, x: jax.Array, neurons: TrainableChannels) -> jax.Array:
    """Returns `y`; its gradient at `neurons.index` goes to `neurons.kernel` too, as that of `linear(x, kernel)`."""
    return y


def _route_gradient_forward(linear, y: jax.Array, x: jax.Array, neurons: TrainableChannels):
    return y, (x, neurons)


def _route_gradient_backward(linear, saved, dy: jax.Array):
    x, neurons = saved
    (kernel,) = jax.linear_transpose(lambda k: linear(x, k), neurons.kernel)(dy[..., neurons.index])
    return dy, None, TrainableChannels(kernel, None)


_route_gradient.defvjp(_route_gradient_forward, _route_gradient_backward)
