"""A barrier that keeps XLA from recomputing an array for each of its consumers."""

from __future__ import annotations

import jax


def fusion_barrier(x: jax.Array) -> jax.Array:
    """Stop XLA on CPU from fusing (and so recomputing) `x` into each of its consumers; identity on other backends.

    XLA on CPU duplicates cheap elementwise operations, and everything that they depend on, into each consumer. In a
    residual network, this recomputes a block's output from the outputs of all blocks before it, six times or more. XLA
    does not duplicate a division whose result it cannot simplify. A training step of ResNet-50 is 1.2 to 1.3 times as
    fast with the barrier at 224×224 and 1.1 times at 64×64, of DenseNet-121 1.25 times at 64×64 (two cores, jaxlib
    0.10.2). `jax.lax.optimization_barrier` has no effect here: it is removed before fusion.

    Note: infinity becomes NaN.
    """
    return _barrier(x) if jax.default_backend() == "cpu" else x


@jax.custom_vjp
def _barrier(x: jax.Array) -> jax.Array:
    return x / (x * 0 + 1)


_barrier.defvjp(lambda x: (_barrier(x), None), lambda _, dy: (_barrier(dy),))
