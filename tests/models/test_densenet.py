"""DenseNet: strides, growth, dropout, and numbers of parameters."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tljax import models
from tljax.errors import UserError
from tljax.models import params as params_lib
from tljax.models.backbones import densenet
from tljax.models.layers import average_pool
from tljax.weights.layouts import densenet as rules

TINY = densenet.Variant((2, 1), growth=3, initial=4, dropout=0.5)


@pytest.mark.parametrize(
    ("name", "channels", "num_params"),
    [
        # Numbers of parameters of torchvision's networks; by default test_zoo.py compares that of the smaller one.
        ("densenet121", (64, 256, 512, 1024, 1024), 7_978_856),
        ("densenet161", (96, 384, 768, 2112, 2208), 28_681_000),
    ],
)
@pytest.mark.deep
def test_densenet_strides_and_num_params(name, channels, num_params):
    model = models.create_model(name, num_classes=1000, rngs=None)
    assert [tuple(info) for info in model.feature_info().values()] == list(
        zip((2, 4, 8, 16, 32), channels, strict=True)
    )
    assert sum(param.size for param in params_lib.flatten_model(model).params.values()) == num_params


def test_layers_append_to_previous_features():
    model = models.create_model(TINY, num_classes=2, image_size=33, rngs=nnx.Rngs(0))

    @nnx.jit
    def run(stage, x):
        features = stage(x)
        stage.names = ("layer1",)
        return features, stage(x)

    x = np.random.default_rng(0).normal(size=(2, 17, 17, 4)).astype(np.float32)
    features, features_of_layer1 = run(model.stage1, x)
    assert features.shape == (2, 9, 9, 4 + 2 * 3)
    np.testing.assert_array_equal(features_of_layer1, features[..., :7])


def test_transition_can_pool_before_convolution():
    unit = models.create_model(TINY, num_classes=2, image_size=33, rngs=nnx.Rngs(0)).stage2.transition
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 7, 7, 10)), jnp.float32)
    run = nnx.jit(lambda unit, x: (unit(x), average_pool(unit.conv(nnx.relu(unit.bn(x))), 2, 2)))
    np.testing.assert_allclose(*run(unit, x), atol=1e-6)


def test_densenet_dropout_only_in_training():
    layer = models.create_model(TINY, num_classes=2, image_size=33, rngs=nnx.Rngs(0)).stage1.layer1
    x = np.random.default_rng(1).normal(size=(2, 5, 5, 4)).astype(np.float32)
    train = nnx.jit(lambda layer, x, rngs: layer(x, train=True, rngs=rngs))
    a, b = (train(layer, x, nnx.Rngs(dropout=k)) for k in (1, 2))
    assert (a != b).any()
    # Dropout without rngs would be an error.
    infer = nnx.jit(lambda layer, x: layer(x))
    np.testing.assert_array_equal(infer(layer, x), infer(layer, x))


def test_too_small_image_is_an_error():
    with pytest.raises(
        UserError, match=r"data\.image_size=4 is too small for Variant.*: its last feature map is empty"
    ):
        models.create_model(TINY, num_classes=2, image_size=4, rngs=None)


def test_layouts_accept_old_names():
    config = densenet.VARIANTS["densenet121"]
    for layout, old, new in (
        (
            rules.torchvision,
            "features.denseblock2.denselayer3.norm.1.bias",
            "features.denseblock2.denselayer3.norm1.bias",
        ),
        (rules.keras, "conv1/bn/gamma", "conv1_bn/gamma"),
        (rules.keras, "fc1000/kernel", "predictions/kernel"),
    ):
        path = layout(config).rule_for_name(old).path
        assert path == layout(config).rule_for_name(new).path
        assert layout(config).rule_for_path(path).name == new
