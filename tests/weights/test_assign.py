"""Strict assignment: mismatches are listed, and a model is filled completely or not at all."""

import os

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from tljax import models, weights
from tljax.errors import UserError
from tljax.models import params as params_lib
from tljax.models.backbones import resnet, vgg
from tljax.weights.layouts import layouts
from tljax.weights.layouts.table import TRANSFORMS

TINY = vgg.Variant(((4,), (6, 6)))


def make_tensors(seed=0):
    """Return a torchvision state dict of the backbone `TINY` with random values."""
    rng = np.random.default_rng(seed)
    shapes = {"features.0": (4, 3, 3, 3), "features.3": (6, 4, 3, 3), "features.5": (6, 6, 3, 3)}
    tensors = {}
    for name, shape in shapes.items():
        tensors[f"{name}.weight"] = rng.normal(size=shape).astype(np.float32)
        tensors[f"{name}.bias"] = rng.normal(size=shape[:1]).astype(np.float32)
    return tensors


def build(**options):
    """Return a small VGG with random parameters."""
    return models.create_model(TINY, num_classes=3, image_size=8, rngs=nnx.Rngs(0), **options)


def params_of(model):
    """Return the parameters of a model by path."""
    return {p: np.asarray(v) for p, v in params_lib.flatten_model(model).params.items()}


def test_assign_weights_transposes_tensors():
    model, source = build(), make_tensors()
    before = params_of(model)
    weights.assign_weights(source, model, layouts("vgg", TINY)["torchvision"], keep="head/.*")
    after = params_of(model)
    for name, path in (("features.0", "stem/conv1"), ("features.3", "stage2/conv1"), ("features.5", "stage2/conv2")):
        assert (after[f"{path}/kernel"] == source[f"{name}.weight"].transpose(2, 3, 1, 0)).all()
        assert (after[f"{path}/bias"] == source[f"{name}.bias"]).all()
    assert (after["head/dense/kernel"] == before["head/dense/kernel"]).all()


@pytest.mark.parametrize(
    ("transform", "side"), [("chw7_to_io", 7), ("chw4_to_io", 4), ("oi77_to_io", 7), ("oi11_to_io", 1)]
)
def test_transform_preserves_dense_layer_outputs(transform, side):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(side, side, 3)), rng.normal(size=(5, 3, side, side))
    # A convolution over the whole input, or a dense layer on the input flattened as C, H, W.
    foreign = kernel if transform.startswith("oi") else kernel.reshape(5, -1)
    native = TRANSFORMS[transform].from_foreign(foreign)
    np.testing.assert_allclose(x.reshape(-1) @ native, np.einsum("oihw,hwi->o", kernel, x))
    np.testing.assert_array_equal(TRANSFORMS[transform].to_foreign(np.ascontiguousarray(native)), foreign)


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (lambda t: t.pop("features.3.bias"), {"keep": "head/.*"}, "Missing variables: stage2/conv1/bias."),
        (lambda t: t.update(extra=np.ones(1)), {"keep": "head/.*"}, "Unexpected tensors: extra."),
        (
            lambda t: t.update({"features.0.weight": np.ones((4, 1, 3, 3))}),
            {"keep": "head/.*"},
            "features.0.weight: (3, 3, 1, 4), but stem/conv1/kernel is (3, 3, 3, 4)",
        ),
        (lambda t: None, {}, "Missing variables: head/dense/bias, head/dense/kernel."),
    ],
)
def test_assign_weights_mismatch_leaves_model_unchanged(change, options, words):
    model, source = build(), make_tensors()
    change(source)
    before = params_of(model)
    with pytest.raises(UserError) as caught:
        weights.assign_weights(source, model, layouts("vgg", TINY)["torchvision"], **options)
    assert words in str(caught.value)
    after = params_of(model)
    assert all((before[p] == after[p]).all() for p in before)


def test_assign_weights_skips_ignored_and_unbuilt():
    model, source = build(out_stage="stem"), make_tensors() | {"extra": np.ones(1)}
    weights.assign_weights(source, model, layouts("vgg", TINY)["torchvision"], keep="head/.*", ignore="ext.*")
    assert (params_of(model)["stem/conv1/bias"] == source["features.0.bias"]).all()


def test_assign_weights_uses_every_resnet_tensor():
    config = resnet.Variant((1, 2), (4, 6), bottleneck=False, small=True)
    rng, source = np.random.default_rng(0), {}

    def conv(name, *shape):
        source[f"{name}.weight"] = rng.normal(size=shape)

    def norm(name, width):
        for part in ("weight", "bias", "running_mean", "running_var"):
            source[f"{name}.{part}"] = rng.normal(size=width)
        source[f"{name}.num_batches_tracked"] = np.array(3)

    conv("conv1", 4, 3, 3, 3)
    norm("bn1", 4)
    for block, inputs, outputs in (("layer1.0", 4, 4), ("layer2.0", 4, 6), ("layer2.1", 6, 6)):
        conv(f"{block}.conv1", outputs, inputs, 3, 3)
        norm(f"{block}.bn1", outputs)
        conv(f"{block}.conv2", outputs, outputs, 3, 3)
        norm(f"{block}.bn2", outputs)
    conv("layer2.0.downsample.0", 6, 4, 1, 1)
    norm("layer2.0.downsample.1", 6)
    source |= {"fc.weight": rng.normal(size=(3, 6)), "fc.bias": rng.normal(size=3)}
    model = models.create_model(config, num_classes=3, rngs=nnx.Rngs(0))
    weights.assign_weights(source, model, layouts("resnet", config)["torchvision"])
    _, params, stats = params_lib.flatten_model(model)
    np.testing.assert_array_equal(
        params["stage2/block0/shortcut/bn/scale"], source["layer2.0.downsample.1.weight"].astype(np.float32)
    )
    np.testing.assert_array_equal(
        stats["stage2/block1/unit2/bn/var"], source["layer2.1.bn2.running_var"].astype(np.float32)
    )
    np.testing.assert_array_equal(params["head/dense/kernel"], source["fc.weight"].T.astype(np.float32))


def test_load_returns_source(tmp_path):
    path = tmp_path / "tiny.safetensors"
    save_file(make_tensors(), path)
    model = build()
    resolved = weights.load(model, str(path), keep="head/.*")
    assert (resolved.path, resolved.preprocess) == (path, None)
    assert len(resolved.sha256) == 64
    assert (params_of(model)["stem/conv1/bias"] == make_tensors()["features.0.bias"]).all()


def test_resolve_weights_errors(tmp_path, monkeypatch):
    monkeypatch.delenv("TLJAX_WEIGHTS_DIR", raising=False)
    with pytest.raises(UserError, match="vgg16_imagenet_notop needs TLJAX_WEIGHTS_DIR"):
        weights.resolve_weights("vgg16_imagenet_notop")
    with pytest.raises(UserError, match='did you mean "vgg16_imagenet_notop"'):
        weights.resolve_weights("vgg16_imagenet")
    monkeypatch.setenv("TLJAX_WEIGHTS_DIR", str(tmp_path))
    (tmp_path / "vgg16_imagenet_notop.safetensors").write_bytes(b"something else")
    with pytest.raises(UserError, match=r"is not vgg16_imagenet_notop: its SHA-256 is .*, expected 42530430"):
        weights.resolve_weights("vgg16_imagenet_notop")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not safetensors at all")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        weights.load(build(), str(broken), keep="head/.*")
    with pytest.raises(UserError, match="holds no finished run"):
        weights.resolve_weights(f"workdir:{tmp_path}")


@pytest.mark.skipif("TLJAX_WEIGHTS_DIR" not in os.environ, reason="TLJAX_WEIGHTS_DIR is unset: no real weights here")
def test_resolve_weights_refuses_other_preprocessing():
    assert weights.resolve_weights("vgg16_imagenet_notop").preprocess == weights.PRESETS["caffe"]
    with pytest.raises(UserError, match='was trained with preprocessing "caffe"'):
        weights.resolve_weights("vgg16_imagenet_notop", "torch")
