"""ConvNeXt: shapes, the blocks' parts, and stochastic depth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tljax import models
from tljax.models import layers
from tljax.models import params as params_lib
from tljax.models.backbones import convnext

TINY = convnext.Variant((1, 2, 1), (4, 6, 8), size=3)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("convnext_tiny", 28_589_128), ("convnext_small", 50_223_688), ("convnext_base", 88_591_464)],
)
@pytest.mark.deep  # the zoo proves those of the smallest every day
def test_has_the_published_strides_and_number_of_parameters(name, parameters):
    model = models.create_model(name, num_classes=1000, rngs=None)
    assert sum(v.size for v in params_lib.flatten_model(model).params.values()) == parameters
    width = 128 if name == "convnext_base" else 96
    assert {stage: tuple(level) for stage, level in model.feature_info().items()} == {
        "stem": (4, width),
        "stage1": (4, width),
        "stage2": (8, 2 * width),
        "stage3": (16, 4 * width),
        "stage4": (32, 8 * width),
    }


def test_the_leaves():
    model = models.create_model(TINY, num_classes=3, rngs=nnx.Rngs(0))
    params = params_lib.flatten_model(model).params
    assert {p for p in params if p.startswith("stage2/") and "block" not in p} == {
        f"stage2/{leaf}" for leaf in ("conv/kernel", "conv/bias", "norm/scale", "norm/bias")
    }
    assert not [p for p in params if p.startswith("stage1/") and "block" not in p]
    assert params["stage2/block1/conv/kernel"].shape == (3, 3, 1, 6)
    assert params["stage2/block1/dense1/kernel"].shape == (6, 24)
    assert params["head/norm/scale"].shape == (8,)
    # A block starts next to the identity, and kernels are small.
    np.testing.assert_array_equal(params["stage3/block0/gamma"], np.full(8, 1e-6, np.float32))
    assert all(0 < np.abs(params[p]).max() < 0.15 for p in params if p.endswith("/kernel"))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_any_side_will_do_and_what_does_not_fill_a_window_is_dropped(dtype):
    model = models.create_model(TINY, num_classes=3, in_channels=1, dtype=dtype, rngs=None)
    picture = jax.ShapeDtypeStruct((2, 37, 29, 1), jnp.float32)
    maps = nnx.eval_shape(lambda m, x: m.features(x), model, picture)
    assert {name: maps[name].shape for name in model.stage_names} == {
        "stem": (2, 9, 7, 4),
        "stage1": (2, 9, 7, 4),
        "stage2": (2, 4, 3, 6),
        "stage3": (2, 2, 1, 8),
    }
    assert {m.dtype for m in maps.values()} == {jnp.dtype(dtype)}


def test_stochastic_depth_grows_with_the_block_and_drops_whole_branches():
    model = models.create_model(TINY, num_classes=3, options={"drop_path": 0.6}, rngs=nnx.Rngs(0))
    rates = [m.rate for _, m in nnx.iter_modules(model) if isinstance(m, layers.DropPath)]
    assert sorted(rates) == pytest.approx([0, 0.2, 0.4, 0.6])
    block = model.stage3.block0
    block.gamma.set_value(np.ones(8, np.float32))

    @nnx.jit
    def branches(block, x, rngs):
        return block(x) - x, block(x, train=True, rngs=rngs) - x

    # The same picture again and again, and the branch's share of each.
    x = np.repeat(np.random.default_rng(0).normal(size=(1, 3, 3, 8)).astype(np.float32), 2000, 0)
    whole, dropped = map(np.asarray, branches(block, x, nnx.Rngs(dropout=0)))
    kept = np.abs(dropped).max((1, 2, 3)) > 0
    assert kept.mean() == pytest.approx(0.4, abs=0.04)
    # Kept branches are scaled up, so that the mean stays.
    np.testing.assert_allclose(dropped[kept], whole[kept] / 0.4, atol=1e-5)
    np.testing.assert_allclose(dropped.mean(0), whole[0], atol=0.1 * np.abs(whole).max())
