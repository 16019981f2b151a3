"""GoogLeNet and Inception v3: strides, blocks defined by data, and auxiliary classifiers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tljax import models
from tljax.errors import UserError
from tljax.models import params as params_lib
from tljax.models.backbones import inception
from tljax.models.backbones.inception import Auxiliary, AveragePool, AverageTo, Conv, MaxPool, Variant

TINY = Variant(
    3,
    (
        (Conv(4, 3, 2, 0),),
        (MaxPool(), ((Conv(2),), (Conv(3), ((Conv(2, (1, 3)),), (Conv(2, (3, 1)),))), (AveragePool(), Conv(1)))),
        (MaxPool(2, ceil_mode=True), Conv(5)),
    ),
    auxiliary=(Auxiliary("stage1", (AverageTo(2), Conv(3)), num_locations=4, hidden=6, dropout=0.5),),
)


def auxiliary_shapes(model, **shapes):
    """Return the shapes of the auxiliary classifiers' outputs for features of these shapes by stage."""
    features = {stage: jax.ShapeDtypeStruct((2, *shape), jnp.float32) for stage, shape in shapes.items()}
    outputs = nnx.eval_shape(lambda m, features: m.head.auxiliary(features), model, features)
    return {name: logits.shape for name, logits in outputs.items()}


@pytest.mark.parametrize(
    ("name", "auxiliary", "strides", "channels", "num_params"),
    [
        # Numbers of parameters of torchvision's networks and of Keras' InceptionV3 with 1000 classes. By default
        # test_zoo.py compares these.
        pytest.param(
            *("googlenet", True, (2, 4, 8, 16, 16, 16, 32), (64, 192, 480, 512, 528, 832, 1024), 13_004_888),
            marks=pytest.mark.deep,
        ),
        ("inception_v3", True, (2, 4, 8, 16, 32), (64, 192, 288, 768, 2048), 27_161_264),
        pytest.param(
            *("inception_v3_keras", False, (2, 4, 8, 16, 32), (64, 192, 288, 768, 2048), 23_817_352),
            marks=pytest.mark.deep,
        ),
    ],
)
def test_inception_strides_and_num_params(name, auxiliary, strides, channels, num_params):
    model = models.create_model(name, num_classes=1000, auxiliary=auxiliary, image_size=299, rngs=None)
    assert [tuple(info) for info in model.feature_info().values()] == list(zip(strides, channels, strict=True))
    assert sum(param.size for param in params_lib.flatten_model(model).params.values()) == num_params


def test_variant_defines_stages_and_paths():
    model = models.create_model(TINY, num_classes=2, image_size=25, rngs=None)
    features = nnx.eval_shape(lambda m, x: m.features(x), model, jax.ShapeDtypeStruct((2, 25, 25, 3), jnp.float32))
    assert {name: x.shape for name, x in features.items()} == {
        "stem": (2, 12, 12, 4),
        "stage1": (2, 5, 5, 2 + 4 + 1),
        "stage2": (2, 3, 3, 5),
    }
    kernels = [p for p in params_lib.flatten_model(model).params if p.startswith("stage1/") and p.endswith("kernel")]
    assert sorted(kernels) == [
        "stage1/block1/branch1/unit1/conv/kernel",
        "stage1/block1/branch2/block1/branch1/unit1/conv/kernel",
        "stage1/block1/branch2/block1/branch2/unit1/conv/kernel",
        "stage1/block1/branch2/unit1/conv/kernel",
        "stage1/block1/branch3/unit1/conv/kernel",
    ]


def test_auxiliary_classifier_dropout_only_in_training():
    model = models.create_model(
        TINY, num_classes=2, image_size=25, auxiliary=True, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)
    )
    features = {"stage1": jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 5, 7)), jnp.bfloat16)}
    train = nnx.jit(lambda head, features, rngs: head.auxiliary(features, train=True, rngs=rngs)["aux1"])
    a, b = (train(model.head, features, nnx.Rngs(dropout=k)) for k in (1, 2))
    assert (a.shape, a.dtype) == ((2, 2), jnp.float32)
    assert (a != b).any()
    # Dropout without rngs would be an error.
    infer = nnx.jit(lambda head, features: head.auxiliary(features)["aux1"])
    np.testing.assert_array_equal(infer(model.head, features), infer(model.head, features))


def test_googlenet_auxiliary_classifiers():
    model = models.create_model("googlenet", num_classes=2, auxiliary=True, rngs=None)
    assert auxiliary_shapes(model, stage3=(3, 3, 512), stage4=(14, 14, 528)) == {"aux1": (2, 2), "aux2": (2, 2)}
    cut = models.create_model("googlenet", num_classes=2, out_stage="stage3", auxiliary=True, rngs=None)
    assert auxiliary_shapes(cut, stage3=(14, 14, 512)) == {"aux1": (2, 2)}


def test_inception_v3_auxiliary_classifier_needs_299():
    model = models.create_model(
        "inception_v3", num_classes=2, out_stage="stage3", image_size=299, auxiliary=True, rngs=None
    )
    sides = []
    for size in (298, 299):
        images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
        sides.append(nnx.eval_shape(lambda m, x: m.features(x)["stage3"], model, images).shape[1])
    assert sides == [16, 17]
    assert auxiliary_shapes(model, stage3=(17, 17, 768)) == {"aux1": (2, 2)}
    with pytest.raises(UserError, match="at least 17×17 at stage3, got 16×17"):
        auxiliary_shapes(model, stage3=(16, 17, 768))


def test_keras_inception_has_no_auxiliary_classifier():
    with pytest.raises(UserError, match="inception_v3_keras has no auxiliary"):
        models.create_model("inception_v3_keras", num_classes=2, out_stage="stem", auxiliary=True, rngs=None)


def test_average_pool_counts_padding_in_torch_only():
    ones = jnp.ones((1, 3, 3, 1))
    torch, keras = (AveragePool(count_padding=count)(ones)[0, :, :, 0] for count in (True, False))
    np.testing.assert_allclose(torch[0], [4 / 9, 6 / 9, 4 / 9], rtol=1e-6)
    np.testing.assert_allclose(keras, 1, rtol=1e-6)
    assert inception.VARIANTS["inception_v3"].stages != inception.VARIANTS["inception_v3_keras"].stages
