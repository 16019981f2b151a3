"""ConvNeXt: shapes, parameters of blocks, and stochastic depth."""

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
    ("name", "num_params"),
    [("convnext_tiny", 28_589_128), ("convnext_small", 50_223_688), ("convnext_base", 88_591_464)],
)
@pytest.mark.deep  # by default test_zoo.py compares those of the smallest
def test_convnext_strides_and_num_params(name, num_params):
    model = models.create_model(name, num_classes=1000, rngs=None)
    assert sum(v.size for v in params_lib.flatten_model(model).params.values()) == num_params
    width = 128 if name == "convnext_base" else 96
    assert {stage: tuple(info) for stage, info in model.feature_info().items()} == {
        "stem": (4, width),
        "stage1": (4, width),
        "stage2": (8, 2 * width),
        "stage3": (16, 4 * width),
        "stage4": (32, 8 * width),
    }


def test_convnext_params():
    model = models.create_model(TINY, num_classes=3, rngs=nnx.Rngs(0))
    params = params_lib.flatten_model(model).params
    assert {p for p in params if p.startswith("stage2/") and "block" not in p} == {
        f"stage2/{name}" for name in ("conv/kernel", "conv/bias", "norm/scale", "norm/bias")
    }
    assert not [p for p in params if p.startswith("stage1/") and "block" not in p]
    assert params["stage2/block1/conv/kernel"].shape == (3, 3, 1, 6)
    assert params["stage2/block1/dense1/kernel"].shape == (6, 24)
    assert params["head/norm/scale"].shape == (8,)
    # Blocks start close to the identity, and initial kernels are small.
    np.testing.assert_array_equal(params["stage3/block0/gamma"], np.full(8, 1e-6, np.float32))
    assert all(0 < np.abs(params[p]).max() < 0.15 for p in params if p.endswith("/kernel"))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_convnext_drops_pixels_that_do_not_fill_a_window(dtype):
    model = models.create_model(TINY, num_classes=3, in_channels=1, dtype=dtype, rngs=None)
    images = jax.ShapeDtypeStruct((2, 37, 29, 1), jnp.float32)
    features = nnx.eval_shape(lambda m, x: m.features(x), model, images)
    assert {name: features[name].shape for name in model.stage_names} == {
        "stem": (2, 9, 7, 4),
        "stage1": (2, 9, 7, 4),
        "stage2": (2, 4, 3, 6),
        "stage3": (2, 2, 1, 8),
    }
    assert {x.dtype for x in features.values()} == {jnp.dtype(dtype)}


def test_stochastic_depth_drops_whole_branches():
    model = models.create_model(TINY, num_classes=3, options={"drop_path": 0.6}, rngs=nnx.Rngs(0))
    rates = [m.rate for _, m in nnx.iter_modules(model) if isinstance(m, layers.DropPath)]
    assert sorted(rates) == pytest.approx([0, 0.2, 0.4, 0.6])
    block = model.stage3.block0
    block.gamma.set_value(np.ones(8, np.float32))

    @nnx.jit
    def branches(block, x, rngs):
        return block(x) - x, block(x, train=True, rngs=rngs) - x

    # A batch of one repeated image, and the residual branch's output for each.
    x = np.repeat(np.random.default_rng(0).normal(size=(1, 3, 3, 8)).astype(np.float32), 2000, 0)
    inference, training = map(np.asarray, branches(block, x, nnx.Rngs(dropout=0)))
    is_kept = np.abs(training).max((1, 2, 3)) > 0
    assert is_kept.mean() == pytest.approx(0.4, abs=0.04)
    # Branches that are not dropped are scaled up to preserve the mean.
    np.testing.assert_allclose(training[is_kept], inference[is_kept] / 0.4, atol=1e-5)
    np.testing.assert_allclose(training.mean(0), inference[0], atol=0.1 * np.abs(inference).max())
