"""DenseNet: strides, the layers' growth, dropout, and the parameters that the paper's networks have."""

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
    ("name", "channels", "parameters"),
    [
        # The parameters are those of torchvision's networks; the zoo proves those of the smaller one every day.
        ("densenet121", (64, 256, 512, 1024, 1024), 7_978_856),
        ("densenet161", (96, 384, 768, 2112, 2208), 28_681_000),
    ],
)
@pytest.mark.deep
def test_the_published_shapes(name, channels, parameters):
    model = models.create_model(name, num_classes=1000, rngs=None)
    assert [tuple(level) for level in model.feature_info().values()] == list(
        zip((2, 4, 8, 16, 32), channels, strict=True)
    )
    assert sum(leaf.size for leaf in params_lib.flatten_model(model).params.values()) == parameters


def test_each_layer_leaves_the_maps_before_it_as_they_are():
    model = models.create_model(TINY, num_classes=2, image_size=33, rngs=nnx.Rngs(0))

    @nnx.jit
    def run(stage, x):
        gathered = stage(x)
        stage.names = ("layer1",)
        return gathered, stage(x)

    gathered, first = run(model.stage1, np.random.default_rng(0).normal(size=(2, 17, 17, 4)).astype(np.float32))
    assert gathered.shape == (2, 9, 9, 4 + 2 * 3)
    np.testing.assert_array_equal(first, gathered[..., :7])


def test_a_transition_may_pool_before_its_convolution():
    unit = models.create_model(TINY, num_classes=2, image_size=33, rngs=nnx.Rngs(0)).stage2.transition
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 7, 7, 10)), jnp.float32)
    run = nnx.jit(lambda unit, x: (unit(x), average_pool(unit.conv(nnx.relu(unit.bn(x))), 2, 2)))
    np.testing.assert_allclose(*run(unit, x), atol=1e-6)


def test_dropout_is_for_training_alone():
    layer = models.create_model(TINY, num_classes=2, image_size=33, rngs=nnx.Rngs(0)).stage1.layer1
    x = np.random.default_rng(1).normal(size=(2, 5, 5, 4)).astype(np.float32)
    train = nnx.jit(lambda layer, x, rngs: layer(x, train=True, rngs=rngs))
    a, b = (train(layer, x, nnx.Rngs(dropout=k)) for k in (1, 2))
    assert (a != b).any()
    # Without a key, nothing can be drawn.
    infer = nnx.jit(lambda layer, x: layer(x))
    np.testing.assert_array_equal(infer(layer, x), infer(layer, x))


def test_too_small_a_picture_is_an_error():
    with pytest.raises(UserError, match=r"data\.image_size=4 is too small for Variant.*: its last map is empty"):
        models.create_model(TINY, num_classes=2, image_size=4, rngs=None)


def test_the_published_files_of_torchvision_and_keras_have_older_names():
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
        path = layout(config).place(old).path
        assert path == layout(config).place(new).path
        assert layout(config).origin(path).name == new
