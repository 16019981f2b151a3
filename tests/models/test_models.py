"""Models: stages, shapes, initial values, and features of the real VGG-16 compared with torch's (tests/golden)."""

import hashlib
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tljax
from tljax import models, weights
from tljax.errors import UserError
from tljax.models import params as params_lib
from tljax.models.backbones import resnet, vgg
from tljax.models.layers import Dropout, average_pool_to

GOLDEN = Path(__file__).parent.parent / "golden"


def test_public_api():
    model = tljax.models.create_model("resnet8", num_classes=10, head="classifier", rngs=nnx.Rngs(0))

    @nnx.jit
    def run(model, images):
        features = model.features(images)
        # jit returns dicts sorted by key; the head must not depend on their order.
        return model(images, train=False), features, model.head(dict(sorted(features.items())))

    logits, features, logits_of_sorted = run(model, np.zeros((2, 16, 16, 3), np.float32))
    assert (logits.shape, logits.dtype) == ((2, 10), jnp.float32)
    np.testing.assert_array_equal(logits_of_sorted, logits)
    assert {k: v.shape[1:] for k, v in features.items()} == {
        "stem": (16, 16, 16),
        "stage1": (16, 16, 16),
        "stage2": (8, 8, 32),
        "stage3": (4, 4, 64),
    }


def test_vgg16_num_params_and_strides():
    model = models.create_model("vgg16", num_classes=10, rngs=None)
    _, params, _ = params_lib.flatten_model(model)
    num_params = sum(int(np.prod(v.shape)) for p, v in params.items() if not p.startswith("head/"))
    assert num_params == 14_714_688  # torchvision's vgg16().features
    features = nnx.eval_shape(lambda m, x: m.features(x), model, jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
    assert [(k, features[k].shape[1], features[k].shape[3]) for k in model.stage_names] == [
        ("stem", 64, 64),
        ("stage1", 64, 64),
        ("stage2", 32, 128),
        ("stage3", 16, 256),
        ("stage4", 8, 512),
        ("stage5", 4, 512),
        ("pool", 2, 512),
    ]


def test_out_stage_cuts_later_stages_only():
    config = vgg.Variant(((4, 4), (8,), (8,)))
    whole = models.create_model(config, num_classes=3, image_size=16, rngs=nnx.Rngs(0))
    cut = models.create_model(config, num_classes=3, out_stage="stage2", image_size=16, rngs=nnx.Rngs(0))
    assert cut.unused_stages == ("stage3", "pool")
    whole_params = params_lib.flatten_model(whole).params
    cut_params = params_lib.flatten_model(cut).params
    assert set(cut_params) == {p for p in whole_params if not p.startswith("stage3")}
    assert all((whole_params[p] == cut_params[p]).all() for p in cut_params)


def test_initial_values_match_distribution_and_seed():
    def init_params(seed):
        return params_lib.flatten_model(
            models.create_model("vgg11", num_classes=10, out_stage="stage4", rngs=nnx.Rngs(seed))
        ).params

    params = init_params(0)
    kernel = "stage4/conv2/kernel"
    assert (params[kernel] == init_params(0)[kernel]).all()
    assert (params[kernel] != init_params(1)[kernel]).any()
    assert np.std(params[kernel]) == pytest.approx(np.sqrt(2 / (9 * 512)), rel=0.01)
    limit = np.sqrt(6 / (512 + 10))
    assert np.abs(params["head/dense/kernel"]).max() <= limit
    assert np.std(params["head/dense/kernel"]) == pytest.approx(limit / np.sqrt(3), rel=0.03)
    assert not params["head/dense/bias"].any()


@pytest.mark.parametrize("head", [{"pool": "avg"}, {"pool": "flatten"}, {"pool": "flatten", "pool_size": 2}])
@pytest.mark.parametrize("extra", [{}, {"norm": "batch", "hidden": (7, 5), "dropout": 0.5}])
def test_classifier_options(head, extra):
    model = models.create_model("resnet8", num_classes=4, image_size=16, rngs=nnx.Rngs(0), **head, **extra)
    num_locations = {"avg": 1, "flatten": head.get("pool_size", 4) ** 2}[head["pool"]]
    params = params_lib.flatten_model(model).params
    first_kernel = params["head/hidden0/kernel" if extra else "head/dense/kernel"]
    assert first_kernel.shape[0] == 64 * num_locations
    abstract = {"stage3": jax.ShapeDtypeStruct((3, 4, 4, 64), jnp.float32)}
    assert nnx.eval_shape(lambda head, features: head(features), model.head, abstract).shape == (3, 4)
    features = {"stage3": np.random.default_rng(0).normal(size=(3, 4, 4, 64)).astype(np.float32)}
    a, b = (run_in_training(model.head, features, nnx.Rngs(dropout=k)) for k in (1, 2))
    assert a.shape == (3, 4)
    assert bool((a == b).all()) == (not extra)


@nnx.jit
def run_in_training(head, features, rngs):
    return head(features, train=True, rngs=rngs)


@pytest.mark.parametrize(("length", "size"), [(8, 4), (7, 3), (5, 7), (6, 1)])
def test_average_pool_to_has_torch_windows(length, size):
    x = np.random.default_rng(0).normal(size=(2, length, 4, 3)).astype(np.float32)
    y = np.asarray(average_pool_to(jnp.asarray(x), (size, 4)))
    for i in range(size):
        start = (i * length) // size
        stop = -((-(i + 1) * length) // size)
        np.testing.assert_allclose(y[:, i], x[:, start:stop].mean(1), atol=1e-6)


def test_dropout_preserves_mean_and_needs_rngs():
    x = jnp.ones((1000,))
    y = Dropout(0.25)(x, train=True, rngs=nnx.Rngs(dropout=0))
    assert set(np.unique(np.round(y, 4))) == {0.0, np.float32(1.3333)}
    assert y.mean() == pytest.approx(1, abs=0.05)
    with pytest.raises(ValueError, match="rngs"):
        Dropout(0.25)(x, train=True)


def test_bfloat16_computation_has_float32_params():
    config = resnet.Variant((1, 1), (4, 6), bottleneck=False, small=True)
    model, exact = (models.create_model(config, num_classes=3, dtype=d, rngs=nnx.Rngs(0)) for d in (jnp.bfloat16, None))
    assert {v.dtype for v in params_lib.flatten_model(model).params.values()} == {jnp.dtype("float32")}
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)

    @nnx.jit
    def run(model, exact, images):
        features = model.features(images)
        return features["stage2"], model.head(features), exact(images)

    last_features, logits, expected = run(model, exact, images)
    assert last_features.dtype == jnp.bfloat16
    np.testing.assert_allclose(logits, expected, atol=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "vgg166"}, 'no model.backbone "vgg166"; did you mean "vgg16"'),
        ({"backbone": "vgg16", "out_stage": "stag3"}, 'did you mean "stage3"'),
        ({"backbone": "vgg16", "head": "clasifier"}, 'did you mean "classifier"'),
        ({"backbone": "vgg16", "image_size": 16}, "too small for vgg16"),
    ],
)
def test_create_model_errors(options, message):
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        models.create_model(num_classes=2, rngs=nnx.Rngs(0), **options)


@pytest.mark.skipif("TLJAX_WEIGHTS_DIR" not in os.environ, reason="TLJAX_WEIGHTS_DIR is unset: no real weights here")
def test_vgg16_features_match_torch():
    from sklearn.datasets import load_sample_image

    golden = np.load(GOLDEN / "vgg16_features.npz")
    image = np.ascontiguousarray(load_sample_image("china.jpg")[100:196, 200:296])
    assert hashlib.sha256(image).hexdigest() == str(golden["image_sha256"]), "the JPEG decoder gives other pixels"
    model = models.create_model("vgg16", num_classes=0, rngs=None)
    source = weights.load(model, "vgg16_imagenet_notop")
    preprocess = weights.make_preprocess(source.preprocess, None)
    features = nnx.jit(lambda m, x: m.features(x))(model, preprocess(image[None]))
    for actual, name in ((features["stage3"][0, ::4, ::4, ::8], "block3"), (features["pool"][0], "pool5")):
        np.testing.assert_allclose(actual, golden[name], rtol=0, atol=1e-5 * golden[name].max())
