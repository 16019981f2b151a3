"""U-Net encoder: shapes and dropout."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from tljax import models
from tljax.models import params as params_lib
from tljax.models.backbones import unet
from tljax.weights.layouts import layouts

TINY = unet.Variant((2, 3, 4))


@pytest.mark.parametrize(
    ("name", "last_channels", "num_params"), [("unet", 1024, 18_847_168), ("unet_bilinear", 512, 9_407_936)]
)
def test_unet_strides_and_num_params(name, last_channels, num_params):
    model = models.create_model(name, num_classes=0, rngs=None)
    assert list(model.feature_info().items()) == [
        ("stem", (1, 64)),
        ("stage1", (2, 128)),
        ("stage2", (4, 256)),
        ("stage3", (8, 512)),
        ("stage4", (16, last_channels)),
    ]
    assert sum(v.size for v in params_lib.flatten_model(model).params.values()) == num_params


def test_unet_drops_pixels_that_do_not_fill_a_window():
    model = models.create_model(TINY, num_classes=3, in_channels=1, dtype=jnp.bfloat16, rngs=None)
    images = jax.ShapeDtypeStruct((2, 15, 22, 1), jnp.float32)
    features = nnx.eval_shape(lambda m, x: m.features(x), model, images)
    assert {name: features[name].shape for name in model.stage_names} == {
        "stem": (2, 15, 22, 2),
        "stage1": (2, 7, 11, 3),
        "stage2": (2, 3, 5, 4),
    }
    assert {x.dtype for x in features.values()} == {jnp.dtype("bfloat16")}


def test_unet_dropout_is_in_the_last_two_stages():
    model = models.create_model(TINY, num_classes=3, options={"dropout": 0.5}, rngs=None)
    assert [getattr(model, name).drop.rate for name in model.stage_names] == [0, 0.5, 0.5]
    images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    nnx.eval_shape(lambda m, x: m.stem(x, train=True), model, images)
    with pytest.raises(ValueError, match="needs rngs"):
        nnx.eval_shape(lambda m, x: m.stage2(x, train=True), model, images)


def test_unet_layout_has_optional_biases():
    variant = dataclasses.replace(unet.VARIANTS["unet"], widths=(2, 3), bias=True)
    model = models.create_model(variant, num_classes=0, image_size=8, rngs=None)
    layout = layouts("unet", variant)["milesial"]
    names = {layout.rule_for_path(path).name for path in params_lib.flatten_model(model).params}
    assert {"inc.double_conv.0.bias", "down1.maxpool_conv.1.double_conv.3.bias"} <= names
