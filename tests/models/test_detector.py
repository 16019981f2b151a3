"""The dense detector: where its places lie, how it writes boxes, and what it starts from."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from tljax.errors import UserError
from tljax.models import initializers
from tljax.models import params as params_lib
from tljax.models.heads.detector import Detector

SIDE = 32
# Strides of 2, 4, 8 and 8.
SHAPES = {"stem": (16, 16, 3), "stage1": (8, 8, 4), "stage2": (4, 4, 5), "stage3": (4, 4, 6)}


class Holder(nnx.Module):
    def __init__(self, **options):
        self.head = Detector(SHAPES, 3, side=SIDE, **{"channels": 4} | options, rngs=nnx.Rngs(0))


def made(**options):
    holder = nnx.eval_shape(lambda: Holder(**options))
    initializers.init_missing_params(holder, jax.random.key(0), by_path=holder.head.initialisers)
    return holder.head


def maps(dtype=jnp.float32, batch=2):
    rng = np.random.default_rng(1)
    return {name: rng.normal(size=(batch, *shape)).astype(dtype) for name, shape in SHAPES.items()}


call = nnx.jit(lambda head, features: head(features))


@pytest.mark.parametrize(
    ("options", "strides", "reads"),
    [
        ({}, [4], ["stage3"]),
        ({"neck": "none"}, [8], ["stage3"]),
        ({"neck": "fpn"}, [2, 4, 8], ["stem", "stage1", "stage3"]),
        ({"neck": "fpn", "levels": 2, "tower": 2}, [4, 8], ["stage1", "stage3"]),
        ({"neck": "unet"}, [4], ["stage3", "stage1"]),
        ({"neck": "unet", "stride": 2}, [2], ["stage3", "stage1", "stem"]),
    ],
)
def test_places_are_the_middles_of_the_cells_of_every_level(options, strides, reads):
    head = made(**options)
    features = maps()
    outputs = call(head, {name: features[name] for name in reads})
    expected = [
        ((row + 0.5) * s, (column + 0.5) * s, s)
        for s in strides
        for row in range(SIDE // s)
        for column in range(SIDE // s)
    ]
    p = len(expected)
    np.testing.assert_array_equal(outputs["places"], [expected] * 2)
    assert {name: x.shape for name, x in outputs.items()} == {
        "logits": (2, p, 3),
        "boxes": (2, p, 4),
        "centre": (2, p),
        "places": (2, p, 3),
    }
    assert head.required_features == dict.fromkeys(reads)


def test_it_starts_with_rare_classes_and_boxes_like_cells_and_takes_the_rest_from_other_weights():
    head = made(neck="fpn", tower=1)
    outputs = call(head, maps())
    np.testing.assert_allclose(jax.nn.sigmoid(outputs["logits"]), 0.01, rtol=0.5)
    stride = outputs["places"][..., 2:]
    np.testing.assert_allclose((outputs["boxes"][..., 2:] - outputs["boxes"][..., :2]) / stride, 1, atol=0.5)
    assert head.distances.kernel.shape == (3, 3, 4, 4)
    left = [path for path in params_lib.flatten_model(head).params if not re.fullmatch(Detector.reusable_params, path)]
    assert sorted(left) == ["classes/bias", "classes/kernel"]


def test_the_transposed_convolution_leaves_things_where_they_are():
    head = made()
    head.neck.up.kernel[...] = jnp.ones_like(head.neck.up.kernel[...])
    x = jnp.zeros((1, *SHAPES["stage3"])).at[0, 2, 1].set(1.0)
    y = np.asarray(head.neck({"stage3": x})[4.0])[0, :, :, 0]
    rows, columns = (np.arange(8) + 0.5) * 4, (np.arange(8) + 0.5) * 4
    assert (y.sum(1) @ rows / y.sum(), y.sum(0) @ columns / y.sum()) == pytest.approx((2.5 * 8, 1.5 * 8))


def boxes_of(head, raw):
    """The boxes of places whose four numbers are all these."""
    head.distances.kernel[...] = jnp.zeros_like(head.distances.kernel[...])
    head.distances.bias[...] = jnp.asarray(raw, jnp.float32)
    outputs = call(head, maps(batch=1))
    return np.asarray(outputs["boxes"][0]), np.asarray(outputs["places"][0])


NONE = made(neck="none")


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4))
def test_every_box_is_finite_and_the_right_way_round(raw):
    boxes, places = boxes_of(NONE, raw)
    reach = np.abs(boxes - np.tile(places[:, :2], 2))
    assert (boxes[:, :2] <= boxes[:, 2:]).all()
    assert reach.max() <= 2 * SIDE


def test_a_small_box_anywhere_in_a_cell_can_be_written():
    reach = np.array([-3.5, -0.5, 3.9, 2.0])  # up, left, down, right of the place, which lies outside
    boxes, places = boxes_of(NONE, np.log(reach / 8 + 0.5))
    np.testing.assert_allclose(boxes - np.tile(places[:, :2], 2), [[3.5, 0.5, 3.9, 2.0]] * 16, atol=1e-5)


def test_dropout_is_for_training_and_needs_a_key():
    head, features = made(neck="none", dropout=0.5), maps()
    with pytest.raises(ValueError, match="needs rngs"):
        nnx.eval_shape(lambda h, x: h(x, train=True), head, features)
    drawn = nnx.jit(lambda head, x, rngs: head(x, train=True, rngs=rngs))(head, features, nnx.Rngs(dropout=0))
    assert not np.array_equal(drawn["logits"], call(head, features)["logits"])
    assert head.drop.rate == 0.5


def test_outputs_are_wide_and_further_ones_are_beside_them():
    head = made(neck="fpn", tower=1, dtype=jnp.bfloat16)
    outputs = nnx.eval_shape(lambda h, x: h(x), head, maps(jnp.bfloat16))
    assert {x.dtype for x in outputs.values()} == {jnp.dtype("float32")}
    assert head.auxiliary(maps()) == {}
    head.hint_stage1 = Further()
    head.auxiliary_stages += (("hint_stage1", "stage1"),)
    assert head.auxiliary(maps())["hint_stage1"].shape == (2, 8, 8, 4)
    assert set(made(neck="none").required_features) == {"stage3"}


class Further(nnx.Module):
    def __call__(self, x, train=False, rngs=None):
        return x


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"neck": "fnp"}, 'model.head_options.neck: there is no "fnp"; did you mean "fpn"?'),
        ({"neck": "fpn", "levels": 4}, "levels must be 1 to 3, the strides of the backbone's maps, got 4"),
        ({"neck": "unet", "stride": 16}, "got 16; there is: 4, 2"),
        ({"neck": "unet", "stride": 8}, "got 8; there is: 4, 2"),
    ],
)
def test_wrong_options_are_named(options, told):
    with pytest.raises(UserError, match=re.escape(told)):
        made(**options)
