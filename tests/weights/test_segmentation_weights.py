"""Loading weights into models with segmentation heads: from the same head, from another, and from none."""

import os

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.models.small import RESNET, TINY, VGG, build, variables, with_random_values
from tests.models.zoo import Case, checkpoint_shapes
from tljax import models, weights
from tljax.errors import UserError
from tljax.models.backbones import vgg
from tljax.models.heads import UNet
from tljax.weights.detect import detect_backbone
from tljax.weights.layouts import NATIVE, layouts


def load_weights(source, model, layout=None):
    """Load weights as a run does; `source` is a file, or another model's variables together with `layout`."""
    reusable = model.head.reusable_params
    patterns = {"keep": f"head/(?!({reusable})).*", "optional": f"head/({reusable})"}
    if layout is None:
        return weights.load(model, str(source), **patterns)
    return weights.assign_weights(source, model, layout, **patterns)


def filled_variables(model, prefix="head/"):
    """Return the variables below `prefix` that have a value, by path."""
    below = {p: v for p, v in variables(model).items() if p.startswith(prefix)}
    return {p: np.asarray(v) for p, v in below.items() if not isinstance(v, jax.ShapeDtypeStruct)}


@pytest.mark.parametrize("layout", ["torchvision", "timm", "keras"])
def test_load_converts_vgg_dense_layers_to_convs(layout, tmp_path):
    config = vgg.Variant(((2,), (3,)))  # 28 pixels give 7×7 features
    source = with_random_values(build(config, "classifier", 28, pool="flatten", hidden=(5, 5)))
    save_file(weights.export_weights(source, layouts("vgg", config)[layout]), tmp_path / "vgg.safetensors")
    model = build(config, "fcn", 28, channels=5)
    load_weights(tmp_path / "vgg.safetensors", model)
    loaded = filled_variables(model)
    assert set(loaded) == {f"head/fc{k}/{name}" for k in (6, 7) for name in ("kernel", "bias")}
    x = np.random.default_rng(0).normal(size=(2, 7, 7, 3)).astype(np.float32)
    expected = filled_variables(source)
    dense = x.reshape(2, -1) @ expected["head/hidden0/kernel"] + expected["head/hidden0/bias"]
    conv = np.einsum("bhwc,hwco->bo", x, loaded["head/fc6/kernel"]) + loaded["head/fc6/bias"]
    np.testing.assert_allclose(conv, dense, atol=1e-4)
    np.testing.assert_array_equal(loaded["head/fc7/kernel"][0, 0], expected["head/hidden1/kernel"])


def test_load_without_dense_layers_leaves_fcn_head(tmp_path):
    source = with_random_values(build(VGG, "classifier"))
    save_file(weights.export_weights(source, layouts("vgg", VGG)["torchvision"]), tmp_path / "vgg.safetensors")
    model = build(VGG, "fcn", channels=5)
    load_weights(tmp_path / "vgg.safetensors", model)
    assert not filled_variables(model)
    np.testing.assert_array_equal(*(filled_variables(m, "stage5/")["stage5/conv1/kernel"] for m in (model, source)))


@pytest.mark.parametrize(
    ("config", "layout", "options"),
    [
        (RESNET, "smp", {"upsample": "nearest", "kernel": 3, "channels": (5, 4, 3, 2, 2)}),
        (VGG, "smp", {"upsample": "nearest", "kernel": 3, "depth": 5, "center": True}),
        (TINY, "milesial", {}),
        (TINY, "milesial", {"upsample": "bilinear"}),
    ],
)
def test_load_unet_decoder_without_classes(config, layout, options, tmp_path):
    source = with_random_values(build(config, "unet", classes=2, **options))
    family = layouts(*models.get_variant(config))
    save_file(weights.export_weights(source, family[layout]), tmp_path / "unet.safetensors")
    model = build(config, "unet", classes=4, auxiliary=True, **options)
    load_weights(tmp_path / "unet.safetensors", model)
    expected = filled_variables(source)
    actual = filled_variables(model)
    assert set(expected) - set(actual) == {"head/score/kernel", "head/score/bias"}
    assert all((expected[path] == value).all() for path, value in actual.items())
    # Other heads accept the file and skip its decoder.
    for head, options in (("fcn", {"channels": 5}), ("classifier", {})):
        model = build(config, head, **options)
        load_weights(tmp_path / "unet.safetensors", model)
        assert not filled_variables(model)


def test_load_from_classifier_run():
    source = with_random_values(build(VGG, "classifier", norm="batch", hidden=(7,)))
    for head, options in (("unet", {}), ("fcn", {"channels": 5})):
        model = build(VGG, head, **options)
        load_weights(variables(source), model, NATIVE)
        assert set(filled_variables(model)) <= {"head/fc6/bias"}
        np.testing.assert_array_equal(*(filled_variables(m, "stem/")["stem/conv1/kernel"] for m in (model, source)))
    with pytest.raises(UserError, match=r"head/dense/bias \(for head/dense/bias\)"):
        weights.assign_weights(variables(source), build(VGG, "unet"), NATIVE, keep="head/(?!dense).*")


@pytest.mark.skipif("TLJAX_WEIGHTS_DIR" not in os.environ, reason="TLJAX_WEIGHTS_DIR is unset: no real weights here")
def test_load_imagenet_vgg16_into_unet():
    model = build("vgg16", "unet")
    load_weights("vgg16_imagenet_notop", model)
    assert not filled_variables(model)
    assert len(filled_variables(model, "stage")) == 2 * 12


def test_detect_backbone_of_unet_with_decoder():
    guess = detect_backbone(checkpoint_shapes(Case("segmentation", "milesial_bilinear")))
    assert (guess.backbone, guess.match.complete) == ("unet_bilinear", True)
    assert isinstance(guess.model.head, UNet)
    assert guess.model.head.upsample == "bilinear"
