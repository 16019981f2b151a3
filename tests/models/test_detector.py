"""The dense detector: locations, box parametrization, and initial values."""

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
# Strides 2, 4, 8 and 8.
SHAPES = {"stem": (16, 16, 3), "stage1": (8, 8, 4), "stage2": (4, 4, 5), "stage3": (4, 4, 6)}


class DetectorModel(nnx.Module):
    def __init__(self, **options):
        self.head = Detector(SHAPES, 3, side=SIDE, **{"channels": 4} | options, rngs=nnx.Rngs(0))


def create_detector(**options):
    model = nnx.eval_shape(lambda: DetectorModel(**options))
    initializers.init_missing_params(model, jax.random.key(0), by_path=model.head.initializers)
    return model.head


def random_features(dtype=jnp.float32, batch=2):
    rng = np.random.default_rng(1)
    return {name: rng.normal(size=(batch, *shape)).astype(dtype) for name, shape in SHAPES.items()}


run_head = nnx.jit(lambda head, features: head(features))


@pytest.mark.parametrize(
    ("options", "strides", "stages"),
    [
        ({}, [4], ["stage3"]),
        ({"neck": "none"}, [8], ["stage3"]),
        ({"neck": "fpn"}, [2, 4, 8], ["stem", "stage1", "stage3"]),
        ({"neck": "fpn", "levels": 2, "tower": 2}, [4, 8], ["stage1", "stage3"]),
        ({"neck": "unet"}, [4], ["stage3", "stage1"]),
        ({"neck": "unet", "stride": 2}, [2], ["stage3", "stage1", "stem"]),
    ],
)
def test_locations_are_cell_centers_of_every_level(options, strides, stages):
    head = create_detector(**options)
    features = random_features()
    outputs = run_head(head, {name: features[name] for name in stages})
    expected = [
        ((row + 0.5) * s, (column + 0.5) * s, s)
        for s in strides
        for row in range(SIDE // s)
        for column in range(SIDE // s)
    ]
    num_locations = len(expected)
    np.testing.assert_array_equal(outputs["places"], [expected] * 2)
    assert {name: x.shape for name, x in outputs.items()} == {
        "logits": (2, num_locations, 3),
        "boxes": (2, num_locations, 4),
        "centre": (2, num_locations),
        "places": (2, num_locations, 3),
    }
    assert head.required_features == dict.fromkeys(stages)


def test_initial_outputs_and_reusable_params():
    head = create_detector(neck="fpn", tower=1)
    outputs = run_head(head, random_features())
    np.testing.assert_allclose(jax.nn.sigmoid(outputs["logits"]), 0.01, rtol=0.5)
    stride = outputs["places"][..., 2:]
    np.testing.assert_allclose((outputs["boxes"][..., 2:] - outputs["boxes"][..., :2]) / stride, 1, atol=0.5)
    assert head.distances.kernel.shape == (3, 3, 4, 4)
    params = params_lib.flatten_model(head).params
    not_reusable = [path for path in params if not re.fullmatch(Detector.reusable_params, path)]
    assert sorted(not_reusable) == ["classes/bias", "classes/kernel"]


def test_deconv_neck_preserves_positions():
    head = create_detector()
    head.neck.up.kernel[...] = jnp.ones_like(head.neck.up.kernel[...])
    x = jnp.zeros((1, *SHAPES["stage3"])).at[0, 2, 1].set(1.0)
    y = np.asarray(head.neck({"stage3": x})[4.0])[0, :, :, 0]
    positions = (np.arange(8) + 0.5) * 4
    assert (y.sum(1) @ positions / y.sum(), y.sum(0) @ positions / y.sum()) == pytest.approx((2.5 * 8, 1.5 * 8))


def predict_boxes(head, raw):
    """Return boxes and locations if the four raw distances are `raw` everywhere."""
    head.distances.kernel[...] = jnp.zeros_like(head.distances.kernel[...])
    head.distances.bias[...] = jnp.asarray(raw, jnp.float32)
    outputs = run_head(head, random_features(batch=1))
    return np.asarray(outputs["boxes"][0]), np.asarray(outputs["places"][0])


WITHOUT_NECK = create_detector(neck="none")


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4))
def test_boxes_are_finite_and_ordered(raw):
    boxes, locations = predict_boxes(WITHOUT_NECK, raw)
    offsets = np.abs(boxes - np.tile(locations[:, :2], 2))
    assert (boxes[:, :2] <= boxes[:, 2:]).all()
    assert offsets.max() <= 2 * SIDE


def test_boxes_can_be_small_and_off_their_location():
    distances = np.array([-3.5, -0.5, 3.9, 2.0])  # top, left, bottom, right; the location is outside the box
    boxes, locations = predict_boxes(WITHOUT_NECK, np.log(distances / 8 + 0.5))
    np.testing.assert_allclose(boxes - np.tile(locations[:, :2], 2), [[3.5, 0.5, 3.9, 2.0]] * 16, atol=1e-5)


def test_detector_dropout_only_in_training():
    head = create_detector(neck="none", dropout=0.5)
    features = random_features()
    with pytest.raises(ValueError, match="needs rngs"):
        nnx.eval_shape(lambda h, x: h(x, train=True), head, features)
    outputs = nnx.jit(lambda head, x, rngs: head(x, train=True, rngs=rngs))(head, features, nnx.Rngs(dropout=0))
    assert not np.array_equal(outputs["logits"], run_head(head, features)["logits"])
    assert head.drop.rate == 0.5


class Identity(nnx.Module):
    def __call__(self, x, train=False, rngs=None):
        return x


def test_detector_float32_and_auxiliary_outputs():
    head = create_detector(neck="fpn", tower=1, dtype=jnp.bfloat16)
    outputs = nnx.eval_shape(lambda h, x: h(x), head, random_features(jnp.bfloat16))
    assert {x.dtype for x in outputs.values()} == {jnp.dtype("float32")}
    assert head.auxiliary(random_features()) == {}
    head.hint_stage1 = Identity()
    head.auxiliary_stages += (("hint_stage1", "stage1"),)
    assert head.auxiliary(random_features())["hint_stage1"].shape == (2, 8, 8, 4)
    assert set(create_detector(neck="none").required_features) == {"stage3"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neck": "fnp"}, 'model.head_options.neck: there is no "fnp"; did you mean "fpn"?'),
        ({"neck": "fpn", "levels": 4}, "levels must be 1 to 3, the number of the backbone's strides, got 4"),
        ({"neck": "unet", "stride": 16}, "got 16; there is: 4, 2"),
        ({"neck": "unet", "stride": 8}, "got 8; there is: 4, 2"),
    ],
)
def test_detector_option_errors(options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        create_detector(**options)
