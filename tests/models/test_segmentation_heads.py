"""U-Net's and FCN's heads: arithmetic beside brute force, and sizes on every backbone.

Whole networks stand beside the references' numbers in test_zoo.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.small import CONVNEXT, DENSENET, RESNET, TINY, VGG, build, drawn, leaves, scattered
from tests.models.test_inception import TINY as INCEPTION
from tests.models.zoo import compiled
from tljax.errors import UserError
from tljax.models import initializers
from tljax.models import params as params_lib
from tljax.models.heads import HEADS
from tljax.models.heads.base import stride_levels
from tljax.models.upsample import bilinear, pad_or_crop
from tljax.strategies.neurons import find_layers


def shapes(model, side=32, train=False):
    """Of the outputs."""
    picture = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    made = nnx.eval_shape(lambda m, x: m.forward_all(x, train=train, rngs=nnx.Rngs(0)), model, picture)
    return {name: (x.shape, x.dtype.name) for name, x in made.items() if name != "maps"}


@settings(deadline=None, max_examples=30)
@given(st.integers(16, 400), st.integers(0, 4), st.booleans())
def test_the_levels_of_a_network_do_not_depend_on_the_size_of_its_input(side, halvings, up):
    maps, here = {}, side
    for k in range(halvings + 1):
        maps |= {f"first{k}": (here, here, k), f"last{k}": (here, here, k)}
        here = (here + up) // 2
    found = stride_levels(maps, side)
    assert [(level.stage, level.stride) for level in found] == [(f"last{k}", 2**k) for k in range(halvings + 1)]


def test_unpadded_convolutions_make_no_level_of_their_own():
    maps = {n: (side, side, 1) for n, side in zip("abcdefg", (149, 147, 73, 71, 35, 17, 8), strict=True)}
    found = [(level.stage, level.stride) for level in stride_levels(maps, 299)]
    assert found == [("b", 2), ("d", 4), ("e", 8), ("f", 16), ("g", 32)]


# U-Net


@pytest.mark.parametrize(
    ("config", "side", "skips", "reads"),
    [
        (VGG, 33, ("stage5", "stage4", "stage3", "stage2", "stage1"), "pool"),
        (RESNET, 45, ("stage3", "stage2", "stage1", "stem", None), "stage4"),
        (DENSENET, 64, ("stage3", "stage2", "stage1", "stem", None), "stage4"),
        (CONVNEXT, 64, ("stage3", "stage2", "stage1", None, None), "stage4"),
        (INCEPTION, 27, ("stage1", "stem", None), "stage2"),
    ],
)
def test_any_backbone_comes_back_to_the_side_of_its_input(config, side, skips, reads):
    model = build(config, "unet", side, upsample="bilinear", dtype=jnp.bfloat16)
    assert shapes(model, side) == {"logits": ((2, side, side, 3), "float32")}
    assert model.head.skips == skips
    assert next(iter(model.head.required_features)) == reads
    assert set(model.head.required_features) == {reads, *filter(None, model.head.skips)}
    assert set(model.head.required_features.values()) == {None}


def test_as_many_of_the_deepest_strides_as_are_asked_for():
    model = build(VGG, "unet", depth=2)
    assert model.head.skips == ("stage5", None, None, None, None)
    # As many channels as the skip has, then halves.
    assert [getattr(model.head, f"block{k}").unit2.conv.out_features for k in range(1, 6)] == [4, 2, 1, 1, 1]
    assert model.head.sizes == ((2, 2), (4, 4), (8, 8), (16, 16), (32, 32))
    assert build(TINY, "unet", depth=1, out_stage="stem").head.skips == ()


def test_outputs_of_inner_blocks_are_there_in_training_alone():
    model = build(TINY, "unet", 14, auxiliary=True, dropout=0.5, rngs=nnx.Rngs(0))
    assert shapes(model, 14) == {"logits": ((2, 14, 14, 3), "float32")}
    assert set(shapes(model, 14, train=True)) == {"logits", "aux1"}
    graphdef, params, stats = params_lib.flatten_model(model)

    @compiled
    def run(leaves, x):
        model = params_lib.merge(graphdef, leaves)
        model.head.drop.rate = 0.0
        outputs, moved = model.forward_all(x, train=True), params_lib.batch_stats(model)
        up = pad_or_crop(model.head.up1(outputs["maps"]["stage2"]), (7, 7))
        block = model.head.block1(jnp.concatenate([outputs["maps"]["stage1"], up], -1), train=True)
        return outputs, moved, bilinear(model.head.aux1(block), (14, 14)), params_lib.batch_stats(model)

    x = np.random.default_rng(0).normal(size=(2, 14, 14, 3)).astype(np.float32)
    outputs, once, aux1, twice = run(params | stats, x)
    np.testing.assert_allclose(outputs["aux1"], aux1, atol=1e-5)
    # The decoder runs once for all outputs: a tenth of the batch's mean, and after one more run 0.19 of it.
    norm = "head/block1/unit1/bn/mean"
    np.testing.assert_allclose(twice[norm], 1.9 * once[norm], rtol=1e-4)


def test_known_maps_are_all_that_the_head_looks_at():
    model = build(TINY, "unet", 12, rngs=nnx.Rngs(0), auxiliary=False)
    graphdef, params, stats = params_lib.flatten_model(model)
    x = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)

    @compiled
    def run(leaves, x):
        model = params_lib.merge(graphdef, leaves)
        maps = model.features(x)
        known = {stage: maps[stage] for stage in model.head.required_features}
        return model(x), model.forward_all(None, cached_features=known)["logits"]

    a, b = run(params | stats, x)
    np.testing.assert_array_equal(a, b)


# FCN


@pytest.mark.parametrize(
    ("config", "side", "variant", "reads"),
    [
        (VGG, 33, "32s", ["pool"]),
        (VGG, 61, "16s", ["pool", "stage5"]),
        (VGG, 47, "8s", ["pool", "stage5", "stage4"]),
        (RESNET, 45, "8s", ["stage4", "stage3", "stage2"]),
        (CONVNEXT, 64, "torchvision", ["stage4"]),
        (TINY, 13, "8s", ["stage2", "stage1", "stem"]),
    ],
)
def test_scores_are_cropped_to_exactly_the_input(config, side, variant, reads):
    model = build(config, "fcn", side, variant=variant, channels=5, dtype=jnp.bfloat16)
    assert shapes(model, side) == {"logits": ((2, side, side, 3), "float32")}
    assert list(model.head.required_features) == reads


def test_fcn_8s_is_the_papers_arithmetic():
    model = drawn(build(VGG, "fcn", 32, channels=5))
    graphdef, params, stats = params_lib.flatten_model(model)
    leaves, rng = {p.removeprefix("head/"): np.asarray(v, float) for p, v in params.items()}, np.random.default_rng(0)
    widths = {"pool": (1, 4), "stage5": (2, 4), "stage4": (4, 4)}
    maps = {stage: rng.normal(size=(2, n, n, c)) for stage, (n, c) in widths.items()}
    got = compiled(lambda leaves, maps: params_lib.merge(graphdef, leaves).head(maps))(
        params | stats, {stage: np.float32(x) for stage, x in maps.items()}
    )

    def dense(x, name):
        return x @ leaves[f"{name}/kernel"][0, 0] + leaves[f"{name}/bias"]

    # Of a 7×7 kernel on a map of one place, the middle meets it.
    x = np.maximum(0, maps["pool"] @ leaves["fc6/kernel"][3, 3] + leaves["fc6/bias"])
    x = dense(np.maximum(0, dense(x, "fc7")), "score")
    x = scattered(x, leaves["up1/kernel"], 2)[:, 1:-1, 1:-1] + dense(maps["stage5"], "score1")
    x = scattered(x, leaves["up2/kernel"], 2)[:, 1:-1, 1:-1] + dense(maps["stage4"], "score2")
    x = scattered(x, leaves["up3/kernel"], 8)[:, 4:-4, 4:-4]
    np.testing.assert_allclose(got, x, atol=1e-4 * np.abs(x).max())


def test_fcn_starts_with_scores_of_zero_and_interpolation():
    model = build(VGG, "fcn", 32, channels=5, rngs=nnx.Rngs(0))
    values = {p: np.asarray(v) for p, v in leaves(model).items() if p.startswith("head/")}
    assert not any(values[f"head/{name}/kernel"].any() for name in ("score", "score1", "score2"))
    assert values["head/fc6/kernel"].any()
    # The weights of the authors' 4×4 filter.
    row = np.array([0.25, 0.75, 0.75, 0.25])
    np.testing.assert_allclose(values["head/up1/kernel"], np.einsum("h,w,io->hwio", row, row, np.eye(3)), atol=1e-7)
    ramp = np.arange(6.0)[None, :, None, None] * np.ones((1, 1, 3, 1))
    inner = scattered(ramp, initializers.bilinear(None, (16, 16, 1, 1)), 8)[0, 8:-8, 16, 0]
    np.testing.assert_allclose(inner, (np.arange(40) + 0.5) / 8, atol=1e-6)
    assert leaves(build(VGG, "fcn", rngs=nnx.Rngs(0), variant="torchvision"))["head/score/kernel"].any()


# Options


@pytest.mark.parametrize(
    ("head", "options", "words"),
    [
        ("unet", {"upsampel": "nearest"}, 'model.head_options: unet has no "upsampel"; did you mean "upsample"?'),
        ("unet", {"upsample": "bilinar"}, 'upsample cannot be "bilinar"; did you mean "bilinear"?'),
        ("unet", {"kernel": "3"}, "model.head_options.kernel must be of type int, got '3'."),
        ("unet", {"kernel": 2}, "model.head_options.kernel must be odd, got 2."),
        ("unet", {"depth": 7}, "model.head_options.depth must be 1 to 6, the backbone's strides, got 7."),
        ("unet", {"channels": [8, 4]}, "channels has 2 numbers, but the decoder has 5 blocks, up from pool."),
        ("fcn", {"variant": "4s"}, 'model.head_options.variant cannot be "4s"'),
        ("fcn", {"auxiliary": True}, 'model.aux_weight: fcn has an auxiliary output with variant="torchvision"'),
        ("fcn", {"out_stage": "stage1"}, "looks at maps of 3 strides, but the backbone has 1."),
        ("classifier", {"channels": 3}, 'model.head_options: classifier has no "channels"'),
    ],
)
def test_wrong_options_are_called_by_their_name(head, options, words):
    with pytest.raises(UserError) as caught:
        build(VGG, head, **options)
    assert words in str(caught.value)


class Pair(nnx.Module):
    """A head of several outputs, and without options."""

    def __init__(self, shapes, num_classes, *, dtype=None, rngs):
        pass

    def __call__(self, features, train=False, rngs=None):
        return {"a": features["stem"], "b": features["stage1"]}

    def auxiliary(self, features, train=False, rngs=None):
        return {}


def test_what_a_head_names_itself_is_an_output_by_that_name(monkeypatch):
    monkeypatch.setitem(HEADS, "pair", Pair)
    assert set(shapes(build(TINY, "pair"), train=True)) == {"a", "b"}
    with pytest.raises(UserError, match=r"^model.aux_weight: the head pair has no auxiliary outputs\."):
        build(TINY, "pair", auxiliary=True)


def test_the_norms_of_a_head_are_its_own_on_every_backbone():
    params = params_lib.flatten_model(build(DENSENET, "unet", 64)).params
    model = build(DENSENET, "unet", 64)
    found = find_layers(params, ["head/block1/.*", "head/up1"], model.norm_of_conv)
    assert found["head/block1/unit1/conv"] == tuple(
        f"head/block1/unit1/{leaf}" for leaf in ("conv/kernel", "bn/scale", "bn/bias")
    )
    assert found["head/up1"] == ("head/up1/kernel", "head/up1/bias")
