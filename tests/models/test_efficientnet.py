"""EfficientNet-Lite: scaling, stages, initial values, freezing, and the published weights compared with timm's network.

test_zoo.py compares the architecture with timm's.
"""

import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_sample_image

from tests.golden import zoo_rule
from tests.strategies.case import Case, make_config
from tljax import models, weights
from tljax.models import layers
from tljax.models import params as params_lib
from tljax.models.backbones import efficientnet
from tljax.models.backbones.efficientnet import Variant, round_channels

GOLDEN = Path(__file__).parent.parent / "golden" / "efficientnet_lite0.npz"
TINY = Variant(0.05, 0.5)


@pytest.mark.parametrize(
    ("name", "depths", "channels"),
    [
        ("efficientnet_lite0", (1, 2, 2, 3, 3, 4, 1), (16, 24, 40, 80, 112, 192, 320)),
        ("efficientnet_lite1", (1, 3, 3, 4, 4, 5, 1), (16, 24, 40, 80, 112, 192, 320)),
        ("efficientnet_lite2", (1, 3, 3, 4, 4, 5, 1), (16, 24, 48, 88, 120, 208, 352)),
        ("efficientnet_lite3", (1, 3, 3, 5, 5, 6, 1), (24, 32, 48, 96, 136, 232, 384)),
        ("efficientnet_lite4", (1, 4, 4, 6, 6, 8, 1), (24, 32, 56, 112, 160, 272, 448)),
    ],
)
def test_published_depths_and_channels(name, depths, channels):
    _, variant = models.get_variant(name)
    assert variant.depths == depths
    assert tuple(round_channels(variant.width * stage.channels) for stage in efficientnet.STAGES) == channels


@given(st.floats(1, 2000))
def test_round_channels_is_near_multiple_of_8(channels):
    rounded = round_channels(channels)
    assert rounded % 8 == 0
    assert rounded >= max(8, 0.9 * channels)
    assert abs(rounded - channels) <= 8


def test_stages_strides_and_channels():
    info = models.create_model("efficientnet_lite0", num_classes=0, rngs=None).feature_info()
    strides = (2, 2, 4, 8, 16, 16, 32, 32, 32)
    channels = (32, 16, 24, 40, 80, 112, 192, 320, 1280)
    names = ("stem", *(f"stage{k}" for k in range(1, 8)), "top")
    assert {name: tuple(x) for name, x in info.items()} == dict(
        zip(names, zip(strides, channels, strict=True), strict=True)
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_features_of_odd_sizes_are_rounded_up(dtype):
    model = models.create_model(TINY, num_classes=3, in_channels=1, dtype=dtype, rngs=None)
    features = nnx.eval_shape(lambda m, x: m.features(x), model, jax.ShapeDtypeStruct((2, 37, 65, 1), jnp.float32))
    sides = {name: features[name].shape[1:3] for name in model.stage_names}
    assert sides["stem"] == sides["stage1"] == (19, 33)
    assert sides["stage2"] == (10, 17)
    assert sides["stage3"] == (5, 9)
    assert sides["stage4"] == sides["stage5"] == (3, 5)
    assert sides["stage6"] == sides["stage7"] == sides["top"] == (2, 3)
    assert {x.dtype for x in features.values()} == {jnp.dtype(dtype)}


def test_relu6_values_and_gradients():
    x = jnp.array([-1.0, 0.0, 3.0, 7.0])
    np.testing.assert_array_equal(efficientnet.relu6(x), [0, 0, 3, 6])
    np.testing.assert_array_equal(jax.grad(lambda x: efficientnet.relu6(x).sum())(x), [0, 0, 1, 0])


def test_initial_kernels_keep_the_variance():
    params = params_lib.flatten_model(models.create_model("efficientnet_lite0", num_classes=2, rngs=nnx.Rngs(0))).params
    expected = {
        "stem/unit/conv/kernel": 2 / (9 * 32),
        "stage7/block0/expand/conv/kernel": 2 / 1152,
        "stage6/block1/depthwise/conv/kernel": 2 / 25,
        "stage7/block0/project/conv/kernel": 2 / 320,
    }
    for path, variance in expected.items():
        assert np.var(params[path]) == pytest.approx(variance, rel=0.1), path


def test_stochastic_depth_of_blocks_with_shortcut():
    model = models.create_model(Variant(0.05, 1.0, drop_path=0.3), num_classes=2, rngs=nnx.Rngs(0))
    rates = [m.rate for _, m in nnx.iter_modules(model) if isinstance(m, layers.DropPath)]
    assert sorted(rates) == pytest.approx(np.linspace(0, 0.3, 16))
    block = model.stage4.block1
    x = np.random.default_rng(0).normal(size=(64, 3, 3, 8)).astype(np.float32)
    y = np.asarray(nnx.jit(lambda block, x, rngs: block(x, train=True, rngs=rngs))(block, x, nnx.Rngs(dropout=0)))
    dropped = np.array([np.array_equal(a, b) for a, b in zip(x, y, strict=True)])
    assert 0 < dropped.mean() < 0.5
    # Without a shortcut nothing is dropped, because the whole image would be.
    assert not model.stage4.block0.has_shortcut
    first = nnx.jit(lambda block, x, rngs: block(x, train=True, rngs=rngs))(model.stage4.block0, x, nnx.Rngs(dropout=0))
    assert np.abs(np.asarray(first)).max((1, 2, 3)).min() > 0


@pytest.mark.parametrize("preset", ["layers", "micro"])
def test_only_trainable_variables_change(preset, tmp_path):
    options = {"width": TINY.width, "depth": 0.1}
    case = Case.make(make_config(tmp_path, preset, ("efficientnet_lite0", options)))
    plan = case.plans[-1]
    index = case.channel_index(plan)
    state, metrics = case.run(plan, 2, compiled=True)
    assert all(m["finite"] for m in metrics)
    after = plan.combine(state.params | state.batch_stats, plan.partition(case.variables, index)[2], index)
    changed = {p: np.any(np.reshape(after[p] != x, (-1, x.shape[-1])), axis=0) for p, x in case.variables.items()}
    for path, channels in changed.items():
        if path in index:
            # Channels that are 0 or 6 everywhere have no gradient.
            selected = set(index[path].tolist())
            assert set(np.flatnonzero(channels)) <= selected, path
            assert channels.sum() > 0.5 * len(selected), path
        else:
            assert channels.any() == (path in (*plan.trainable, *plan.batch_stats)), path
    if preset == "micro":
        assert "stage3/block0/depthwise/bn/scale" in index


def photos():
    square = slice(120, 376, 2)
    return np.stack([load_sample_image(name)[square, square] for name in ("china.jpg", "flower.jpg")])


def test_published_weights_match_timm():
    golden = np.load(GOLDEN)
    images = photos()
    assert hashlib.sha256(images).hexdigest() == str(golden["image_sha256"]), "the JPEG decoder gives other pixels"
    model = models.create_model("efficientnet_lite0", num_classes=1000, rngs=None)
    # Strict: every tensor of the file and every variable of the model is matched.
    source = weights.load(model, "efficientnet_lite0")
    assert (source.revision, source.backbone) == ("0.1.0", "efficientnet_lite0")
    x = weights.make_preprocess(source.preprocess, None)(images)
    np.testing.assert_allclose(x, (images.astype(np.float64) - 127) / 128, atol=1e-6)
    logits, features = nnx.jit(lambda m, x: (m(x), m.features(x)))(model, x)
    np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=1e-5 * np.abs(golden["logits"]).max())
    # Palace, and daisy: ImageNet has no dahlia.
    assert np.argmax(logits, axis=1).tolist() == np.argmax(golden["logits"], axis=1).tolist() == [698, 985]
    assert features.keys() == {key.removeprefix("map:") for key in golden.files if key.startswith("map:")}
    for stage, value in features.items():
        expected = golden[f"map:{stage}"]
        assert value.shape == tuple(golden[f"shape:{stage}"])
        np.testing.assert_allclose(zoo_rule.sample(value), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        assert np.linalg.norm(np.asarray(value, np.float64)) == pytest.approx(golden[f"norm:{stage}"], rel=1e-6)
