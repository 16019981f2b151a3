"""Weights under the heads of segmentation: of whole networks, of other heads, and of none."""

import os

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.models.small import RESNET, TINY, VGG, build, drawn, leaves
from tests.models.zoo import Case, shapes_of
from tljax import models, weights
from tljax.errors import UserError
from tljax.models.backbones import vgg
from tljax.models.heads import UNet
from tljax.weights.detect import detect_backbone
from tljax.weights.layouts import NATIVE, layouts


def take(source, model, layout=None):
    """What a run does with weights; `source` is a file or another model's leaves."""
    transfers = model.head.reusable_params
    how = {"keep": f"head/(?!({transfers})).*", "optional": f"head/({transfers})"}
    if layout is None:
        return weights.load(model, str(source), **how)
    return weights.assign_weights(source, model, layout, **how)


def values(model, start="head/"):
    """Leaves that have a value, by path."""
    found = {p: v for p, v in leaves(model).items() if p.startswith(start)}
    return {p: np.asarray(v) for p, v in found.items() if not isinstance(v, jax.ShapeDtypeStruct)}


@pytest.mark.parametrize("layout", ["torchvision", "timm", "keras"])
def test_dense_layers_of_a_vgg_become_convolutions(layout, tmp_path):
    config = vgg.Variant(((2,), (3,)))  # 28 pixels end on 7×7 places
    source = drawn(build(config, "classifier", 28, pool="flatten", hidden=(5, 5)))
    save_file(weights.export(source, layouts("vgg", config)[layout]), tmp_path / "vgg.safetensors")
    model = build(config, "fcn", 28, channels=5)
    take(tmp_path / "vgg.safetensors", model)
    taken = values(model)
    assert set(taken) == {f"head/fc{k}/{leaf}" for k in (6, 7) for leaf in ("kernel", "bias")}
    x = np.random.default_rng(0).normal(size=(2, 7, 7, 3)).astype(np.float32)
    dense = x.reshape(2, -1) @ values(source)["head/hidden0/kernel"] + values(source)["head/hidden0/bias"]
    middle = np.einsum("bhwc,hwco->bo", x, taken["head/fc6/kernel"]) + taken["head/fc6/bias"]
    np.testing.assert_allclose(middle, dense, atol=1e-4)
    np.testing.assert_array_equal(taken["head/fc7/kernel"][0, 0], values(source)["head/hidden1/kernel"])


def test_weights_without_dense_layers_leave_these_as_they_are(tmp_path):
    source = drawn(build(VGG, "classifier"))
    save_file(weights.export(source, layouts("vgg", VGG)["torchvision"]), tmp_path / "vgg.safetensors")
    model = build(VGG, "fcn", channels=5)
    take(tmp_path / "vgg.safetensors", model)
    assert not values(model)
    np.testing.assert_array_equal(*(values(m, "stage5/")["stage5/conv1/kernel"] for m in (model, source)))


@pytest.mark.parametrize(
    ("config", "layout", "options"),
    [
        (RESNET, "smp", {"upsample": "nearest", "kernel": 3, "channels": (5, 4, 3, 2, 2)}),
        (VGG, "smp", {"upsample": "nearest", "kernel": 3, "depth": 5, "center": True}),
        (TINY, "milesial", {}),
        (TINY, "milesial", {"upsample": "bilinear"}),
    ],
)
def test_another_u_nets_decoder_is_taken_but_for_its_classes(config, layout, options, tmp_path):
    source = drawn(build(config, "unet", classes=2, **options))
    family = layouts(*models.get_variant(config))
    save_file(weights.export(source, family[layout]), tmp_path / "unet.safetensors")
    model = build(config, "unet", classes=4, auxiliary=True, **options)
    take(tmp_path / "unet.safetensors", model)
    theirs, ours = values(source), values(model)
    assert set(theirs) - set(ours) == {"head/score/kernel", "head/score/bias"}
    assert all((theirs[path] == value).all() for path, value in ours.items())
    # Under any other head, its tensors are known and lie unused.
    for head, options in (("fcn", {"channels": 5}), ("classifier", {})):
        model = build(config, head, **options)
        take(tmp_path / "unet.safetensors", model)
        assert not values(model)


def test_a_run_with_a_classifier_is_a_source():
    source = drawn(build(VGG, "classifier", norm="batch", hidden=(7,)))
    for head, options in (("unet", {}), ("fcn", {"channels": 5})):
        model = build(VGG, head, **options)
        take(leaves(source), model, NATIVE)
        assert set(values(model)) <= {"head/fc6/bias"}
        np.testing.assert_array_equal(*(values(m, "stem/")["stem/conv1/kernel"] for m in (model, source)))
    with pytest.raises(UserError, match=r"head/dense/bias \(for head/dense/bias\)"):
        weights.assign_weights(leaves(source), build(VGG, "unet"), NATIVE, keep="head/(?!dense).*")


@pytest.mark.skipif("TLJAX_WEIGHTS_DIR" not in os.environ, reason="TLJAX_WEIGHTS_DIR is unset: no real weights here")
def test_imagenets_vgg16_stands_under_a_u_net():
    model = build("vgg16", "unet")
    take("vgg16_imagenet_notop", model)
    assert not values(model)
    assert len(values(model, "stage")) == 2 * 12


def test_a_file_of_a_whole_u_net_tells_its_decoder():
    found = detect_backbone(shapes_of(Case("segmentation", "milesial_bilinear")))
    assert (found.backbone, found.match.complete) == ("unet_bilinear", True)
    assert isinstance(found.model.head, UNet)
    assert found.model.head.upsample == "bilinear"
