"""Heads of U-Net and FCN: comparison with reference loops, and output sizes on every backbone.

test_zoo.py compares whole networks with reference implementations.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.small import (
    CONVNEXT,
    DENSENET,
    EFFICIENTNET,
    RESNET,
    TINY,
    VGG,
    build,
    conv_transpose_reference,
    variables,
    with_random_values,
)
from tests.models.test_inception import TINY as INCEPTION
from tests.models.zoo import fast_jit
from tljax.errors import UserError
from tljax.models import initializers
from tljax.models import params as params_lib
from tljax.models.heads import HEADS
from tljax.models.heads.base import stride_levels
from tljax.models.upsample import pad_or_crop, resize_bilinear
from tljax.strategies.neurons import find_layers


def output_shapes(model, side=32, train=False):
    """Return shape and dtype of every output."""
    images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    outputs = nnx.eval_shape(lambda m, x: m.forward_all(x, train=train, rngs=nnx.Rngs(0)), model, images)
    return {name: (x.shape, x.dtype.name) for name, x in outputs.items() if name != "maps"}


@settings(deadline=None, max_examples=30)
@given(st.integers(16, 400), st.integers(0, 4), st.booleans())
def test_stride_levels_do_not_depend_on_input_size(input_side, halvings, round_up):
    shapes = {}
    side = input_side
    for k in range(halvings + 1):
        shapes |= {f"first{k}": (side, side, k), f"last{k}": (side, side, k)}
        side = (side + round_up) // 2
    levels = stride_levels(shapes, input_side)
    assert [(level.stage, level.stride) for level in levels] == [(f"last{k}", 2**k) for k in range(halvings + 1)]


def test_stride_levels_ignore_unpadded_convolutions():
    shapes = {n: (side, side, 1) for n, side in zip("abcdefg", (149, 147, 73, 71, 35, 17, 8), strict=True)}
    levels = [(level.stage, level.stride) for level in stride_levels(shapes, 299)]
    assert levels == [("b", 2), ("d", 4), ("e", 8), ("f", 16), ("g", 32)]


# U-Net


@pytest.mark.parametrize(
    ("config", "side", "skips", "deepest"),
    [
        (VGG, 33, ("stage5", "stage4", "stage3", "stage2", "stage1"), "pool"),
        (RESNET, 45, ("stage3", "stage2", "stage1", "stem", None), "stage4"),
        (DENSENET, 64, ("stage3", "stage2", "stage1", "stem", None), "stage4"),
        (CONVNEXT, 64, ("stage3", "stage2", "stage1", None, None), "stage4"),
        (EFFICIENTNET, 43, ("stage5", "stage3", "stage2", "stage1", None), "top"),
        (INCEPTION, 27, ("stage1", "stem", None), "stage2"),
    ],
)
def test_unet_output_has_the_input_size(config, side, skips, deepest):
    model = build(config, "unet", side, upsample="bilinear", dtype=jnp.bfloat16)
    assert output_shapes(model, side) == {"logits": ((2, side, side, 3), "float32")}
    assert model.head.skips == skips
    assert next(iter(model.head.required_features)) == deepest
    assert set(model.head.required_features) == {deepest, *filter(None, model.head.skips)}
    assert set(model.head.required_features.values()) == {None}


def test_unet_depth_selects_deepest_strides():
    model = build(VGG, "unet", depth=2)
    assert model.head.skips == ("stage5", None, None, None, None)
    # Channels of the skip connection, then halves of the previous block's.
    assert [getattr(model.head, f"block{k}").unit2.conv.out_features for k in range(1, 6)] == [4, 2, 1, 1, 1]
    assert model.head.sizes == ((2, 2), (4, 4), (8, 8), (16, 16), (32, 32))
    assert build(TINY, "unet", depth=1, out_stage="stem").head.skips == ()


def test_unet_auxiliary_outputs_only_in_training():
    model = build(TINY, "unet", 14, auxiliary=True, dropout=0.5, rngs=nnx.Rngs(0))
    assert output_shapes(model, 14) == {"logits": ((2, 14, 14, 3), "float32")}
    assert set(output_shapes(model, 14, train=True)) == {"logits", "aux1"}
    graphdef, params, stats = params_lib.flatten_model(model)

    @fast_jit
    def run(variables, x):
        model = params_lib.merge(graphdef, variables)
        model.head.drop.rate = 0.0
        outputs = model.forward_all(x, train=True)
        stats_after_one = params_lib.batch_stats(model)
        up = pad_or_crop(model.head.up1(outputs["maps"]["stage2"]), (7, 7))
        block = model.head.block1(jnp.concatenate([outputs["maps"]["stage1"], up], -1), train=True)
        aux1 = resize_bilinear(model.head.aux1(block), (14, 14))
        return outputs, aux1, stats_after_one, params_lib.batch_stats(model)

    x = np.random.default_rng(0).normal(size=(2, 14, 14, 3)).astype(np.float32)
    outputs, aux1, stats_after_one, stats_after_two = run(params | stats, x)
    np.testing.assert_allclose(outputs["aux1"], aux1, atol=1e-5)
    # The decoder runs once for all outputs: the running mean is 0.1 times the batch mean, and 0.19 after a second run.
    path = "head/block1/unit1/bn/mean"
    np.testing.assert_allclose(stats_after_two[path], 1.9 * stats_after_one[path], rtol=1e-4)


def test_unet_reads_only_required_features():
    model = build(TINY, "unet", 12, rngs=nnx.Rngs(0), auxiliary=False)
    graphdef, params, stats = params_lib.flatten_model(model)
    x = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)

    @fast_jit
    def run(variables, x):
        model = params_lib.merge(graphdef, variables)
        features = model.features(x)
        required = {stage: features[stage] for stage in model.head.required_features}
        return model(x), model.forward_all(None, cached_features=required)["logits"]

    logits, logits_of_cached = run(params | stats, x)
    np.testing.assert_array_equal(logits, logits_of_cached)


# FCN


@pytest.mark.parametrize(
    ("config", "side", "variant", "stages"),
    [
        (VGG, 33, "32s", ["pool"]),
        (VGG, 61, "16s", ["pool", "stage5"]),
        (VGG, 47, "8s", ["pool", "stage5", "stage4"]),
        (RESNET, 45, "8s", ["stage4", "stage3", "stage2"]),
        (CONVNEXT, 64, "torchvision", ["stage4"]),
        (EFFICIENTNET, 43, "8s", ["top", "stage5", "stage3"]),
        (TINY, 13, "8s", ["stage2", "stage1", "stem"]),
    ],
)
def test_fcn_output_has_the_input_size(config, side, variant, stages):
    model = build(config, "fcn", side, variant=variant, channels=5, dtype=jnp.bfloat16)
    assert output_shapes(model, side) == {"logits": ((2, side, side, 3), "float32")}
    assert list(model.head.required_features) == stages


def test_fcn_8s_matches_paper():
    model = with_random_values(build(VGG, "fcn", 32, channels=5))
    graphdef, params, stats = params_lib.flatten_model(model)
    head_params = {p.removeprefix("head/"): np.asarray(v, float) for p, v in params.items()}
    rng = np.random.default_rng(0)
    sizes = {"pool": (1, 4), "stage5": (2, 4), "stage4": (4, 4)}
    features = {stage: rng.normal(size=(2, n, n, c)) for stage, (n, c) in sizes.items()}
    logits = fast_jit(lambda variables, features: params_lib.merge(graphdef, variables).head(features))(
        params | stats, {stage: np.float32(x) for stage, x in features.items()}
    )

    def conv1x1(x, name):
        return x @ head_params[f"{name}/kernel"][0, 0] + head_params[f"{name}/bias"]

    def upsample(x, name, stride):
        return conv_transpose_reference(x, head_params[f"{name}/kernel"], stride)

    # On features of a single location, only the center of a 7×7 kernel has an effect.
    x = np.maximum(0, features["pool"] @ head_params["fc6/kernel"][3, 3] + head_params["fc6/bias"])
    x = conv1x1(np.maximum(0, conv1x1(x, "fc7")), "score")
    x = upsample(x, "up1", 2)[:, 1:-1, 1:-1] + conv1x1(features["stage5"], "score1")
    x = upsample(x, "up2", 2)[:, 1:-1, 1:-1] + conv1x1(features["stage4"], "score2")
    x = upsample(x, "up3", 8)[:, 4:-4, 4:-4]
    np.testing.assert_allclose(logits, x, atol=1e-4 * np.abs(x).max())


def test_fcn_initial_scores_and_interpolation():
    model = build(VGG, "fcn", 32, channels=5, rngs=nnx.Rngs(0))
    values = {p: np.asarray(v) for p, v in variables(model).items() if p.startswith("head/")}
    assert not any(values[f"head/{name}/kernel"].any() for name in ("score", "score1", "score2"))
    assert values["head/fc6/kernel"].any()
    # Weights of the authors' 4×4 filter.
    row = np.array([0.25, 0.75, 0.75, 0.25])
    np.testing.assert_allclose(values["head/up1/kernel"], np.einsum("h,w,io->hwio", row, row, np.eye(3)), atol=1e-7)
    ramp = np.arange(6.0)[None, :, None, None] * np.ones((1, 1, 3, 1))
    inner = conv_transpose_reference(ramp, initializers.bilinear(None, (16, 16, 1, 1)), 8)[0, 8:-8, 16, 0]
    np.testing.assert_allclose(inner, (np.arange(40) + 0.5) / 8, atol=1e-6)
    assert variables(build(VGG, "fcn", rngs=nnx.Rngs(0), variant="torchvision"))["head/score/kernel"].any()


# Options


@pytest.mark.parametrize(
    ("head", "options", "message"),
    [
        ("unet", {"upsampel": "nearest"}, 'model.head_options: unet has no "upsampel"; did you mean "upsample"?'),
        ("unet", {"upsample": "bilinar"}, 'upsample cannot be "bilinar"; did you mean "bilinear"?'),
        ("unet", {"kernel": "3"}, "model.head_options.kernel must be of type int, got '3'."),
        ("unet", {"kernel": 2}, "model.head_options.kernel must be odd, got 2."),
        ("unet", {"depth": 7}, "model.head_options.depth must be 1 to 6, the number of the backbone's strides, got 7."),
        ("unet", {"channels": [8, 4]}, "channels has 2 values, but the decoder has 5 blocks from pool up."),
        ("fcn", {"variant": "4s"}, 'model.head_options.variant cannot be "4s"'),
        ("fcn", {"auxiliary": True}, 'model.aux_weight: fcn has an auxiliary output with variant="torchvision"'),
        ("fcn", {"out_stage": "stage1"}, "needs features of 3 strides, but the backbone has 1."),
        ("classifier", {"channels": 3}, 'model.head_options: classifier has no "channels"'),
    ],
)
def test_head_option_errors(head, options, message):
    with pytest.raises(UserError) as error:
        build(VGG, head, **options)
    assert message in str(error.value)


class TwoOutputHead(nnx.Module):
    """A head with several outputs and without options."""

    def __init__(self, shapes, num_classes, *, dtype=None, rngs):
        pass

    def __call__(self, features, train=False, rngs=None):
        return {"a": features["stem"], "b": features["stage1"]}

    def auxiliary(self, features, train=False, rngs=None):
        return {}


def test_head_can_return_named_outputs(monkeypatch):
    monkeypatch.setitem(HEADS, "pair", TwoOutputHead)
    assert set(output_shapes(build(TINY, "pair"), train=True)) == {"a", "b"}
    with pytest.raises(UserError, match=r"^model.aux_weight: the head pair has no auxiliary outputs\."):
        build(TINY, "pair", auxiliary=True)


def test_head_norms_do_not_depend_on_backbone():
    params = params_lib.flatten_model(build(DENSENET, "unet", 64)).params
    model = build(DENSENET, "unet", 64)
    layers = find_layers(params, ["head/block1/.*", "head/up1"], model.norm_of_conv)
    assert layers["head/block1/unit1/conv"] == tuple(
        f"head/block1/unit1/{name}" for name in ("conv/kernel", "bn/scale", "bn/bias")
    )
    assert layers["head/up1"] == ("head/up1/kernel", "head/up1/bias")
