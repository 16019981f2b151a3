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
def test_value_and_gradients_equal_those_of_flax(scale, bias):
    rng = np.random.default_rng(0)
    x, dy = rng.normal(3, 2, (2, 4, 3, 5, 6))
    rows = [jnp.asarray(rng.normal(1, 1, 6)) if there else None for there in (scale, bias)]
    zeros = jnp.zeros(6)

    def theirs(x, scale, bias):
        norm = nnx.BatchNorm(6, momentum=0.0, epsilon=1e-3, use_scale=scale is not None, use_bias=bias is not None,
                             use_fast_variance=False, dtype=jnp.float64, rngs=nnx.Rngs(0))  # fmt: skip
        for variable, row in ((norm.mean, zeros), (norm.var, zeros), (norm.scale, scale), (norm.bias, bias)):
            if row is not None:
                variable.set_value(row)
        return norm(x, use_running_average=False)

    def ours(x, scale, bias):
        return batch_norm.by_batch(x, scale, bias, epsilon=1e-3, dtype=x.dtype)[0]

    def loss(of):
        return lambda *given: (lambda y: (y * dy + y**2).sum())(of(*given))

    given = tuple(i for i, row in enumerate((x, *rows)) if row is not None)

    @jax.jit
    def both(*arrays):
        return [(of(*arrays), jax.grad(loss(of), given)(*arrays)) for of in (ours, theirs)]

    (y, mine), (y_flax, flax) = both(jnp.asarray(x), *rows)
    np.testing.assert_allclose(y, y_flax, rtol=1e-12, atol=1e-12)
    for a, b in zip(mine, flax, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


def test_a_half_precise_map_has_statistics_and_sums_in_float32():
    x = (jax.random.normal(jax.random.key(0), (64, 8, 8, 4)) + 100).astype(jnp.bfloat16)
    one = jnp.ones(4, jnp.float32)
    y, mean, var = jax.jit(lambda x: batch_norm.by_batch(x, one, one, epsilon=1e-5, dtype=x.dtype))(x)
    wide = np.asarray(x, np.float64)
    assert (y.dtype, mean.dtype, var.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    np.testing.assert_allclose(mean, wide.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(var, wide.var((0, 1, 2)), rtol=1e-4)
    shift = jax.grad(lambda b: batch_norm.by_batch(x, one, b, epsilon=1e-5, dtype=x.dtype)[0].sum(dtype=jnp.float32))
    # 4096 ones: a sum in bfloat16 stands still at 256.
    np.testing.assert_array_equal(jax.jit(shift)(one), 4096.0)


def test_computed_once_is_the_same_to_the_bit_with_its_gradient():
    x = jnp.asarray([0.0, -0.0, 1.5, 7e300, -2.0])
    kept, back = jax.vjp(fusion_barrier, x)
    assert np.asarray(kept).tobytes() == np.asarray(x).tobytes() == np.asarray(back(x)[0]).tobytes()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other backends are left as they are")
def test_a_residual_stream_is_not_computed_again_by_each_of_its_readers():
    def readers(keep):
        def network(x, kernels):
            for kernel in kernels:
                x = keep(jnp.maximum(x @ kernel * 1.1 + x, 0))
            return x

        x, kernels = jnp.ones((64, 64)), [jnp.ones((64, 64))] * 4
        text = jax.jit(network).lower(x, kernels).compile().as_text()
        # How many operations of the stream there are in all loops: one for each block, or more where they are repeated.
        return text.count(" maximum(")

    assert readers(fusion_barrier) == 4 < readers(lambda x: x)
