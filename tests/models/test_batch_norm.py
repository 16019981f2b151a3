"""Batch normalization and the fusion barrier."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tljax.ops import batch_norm
from tljax.ops.fusion import fusion_barrier


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_batch_norm_matches_flax(scale, bias):
    rng = np.random.default_rng(0)
    x, dy = rng.normal(3, 2, (2, 4, 3, 5, 6))
    params = [jnp.asarray(rng.normal(1, 1, 6)) if used else None for used in (scale, bias)]
    zeros = jnp.zeros(6)

    def flax_batch_norm(x, scale, bias):
        norm = nnx.BatchNorm(6, momentum=0.0, epsilon=1e-3, use_scale=scale is not None, use_bias=bias is not None,
                             use_fast_variance=False, dtype=jnp.float64, rngs=nnx.Rngs(0))  # fmt: skip
        for variable, value in ((norm.mean, zeros), (norm.var, zeros), (norm.scale, scale), (norm.bias, bias)):
            if value is not None:
                variable.set_value(value)
        return norm(x, use_running_average=False)

    def tljax_batch_norm(x, scale, bias):
        return batch_norm.normalize_by_batch_stats(x, scale, bias, epsilon=1e-3, dtype=x.dtype)[0]

    def value_and_gradients(normalize, *arrays):
        def loss_fn(*arrays):
            y = normalize(*arrays)
            return (y * dy + y**2).sum()

        argnums = tuple(i for i, array in enumerate(arrays) if array is not None)
        return normalize(*arrays), jax.grad(loss_fn, argnums)(*arrays)

    @jax.jit
    def run_both(*arrays):
        return value_and_gradients(tljax_batch_norm, *arrays), value_and_gradients(flax_batch_norm, *arrays)

    (y, grads), (y_flax, grads_flax) = run_both(jnp.asarray(x), *params)
    np.testing.assert_allclose(y, y_flax, rtol=1e-12, atol=1e-12)
    for actual, expected in zip(grads, grads_flax, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-10)


def test_batch_norm_of_bfloat16_sums_in_float32():
    x = (jax.random.normal(jax.random.key(0), (64, 8, 8, 4)) + 100).astype(jnp.bfloat16)
    one = jnp.ones(4, jnp.float32)

    def normalize(x, bias):
        return batch_norm.normalize_by_batch_stats(x, one, bias, epsilon=1e-5, dtype=x.dtype)

    y, mean, var = jax.jit(normalize)(x, one)
    exact = np.asarray(x, np.float64)
    assert (y.dtype, mean.dtype, var.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(var, exact.var((0, 1, 2)), rtol=1e-4)
    bias_gradient = jax.grad(lambda bias: normalize(x, bias)[0].sum(dtype=jnp.float32))
    # The sum of 4096 ones: in bfloat16 it would stop at 256.
    np.testing.assert_array_equal(jax.jit(bias_gradient)(one), 4096.0)


def test_fusion_barrier_is_bitwise_identity():
    x = jnp.asarray([0.0, -0.0, 1.5, 7e300, -2.0])
    y, vjp = jax.vjp(fusion_barrier, x)
    assert np.asarray(y).tobytes() == np.asarray(x).tobytes() == np.asarray(vjp(x)[0]).tobytes()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the barrier is the identity on other backends")
def test_fusion_barrier_prevents_recomputation():
    def count_maxima(barrier):
        def network(x, kernels):
            for kernel in kernels:
                x = barrier(jnp.maximum(x @ kernel * 1.1 + x, 0))
            return x

        x = jnp.ones((64, 64))
        kernels = [jnp.ones((64, 64))] * 4
        text = jax.jit(network).lower(x, kernels).compile().as_text()
        # Number of ReLUs in all fused loops: one per block, more if they are recomputed.
        return text.count(" maximum(")

    assert count_maxima(fusion_barrier) == 4 < count_maxima(lambda x: x)
