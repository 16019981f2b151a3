"""Comparison of every network with its reference (tests/golden/make_zoo.py and make_efficientnet.py).

By default the outputs of the smallest network of each kind of block, norm and layout are compared, and only parameter
names and shapes of the others. `pytest -m deep` compares the outputs of all networks, and the gradients of most.
"""

import pytest

from tests.models import zoo

CASES = zoo.cases()
COMPUTED = {
    "torchvision-vgg11_bn", "torchvision-resnet18", "torchvision-resnet50", "torchvision-resnext50_32x4d",
    "torchvision-densenet121", "torchvision-googlenet", "torchvision-inception_v3", "torchvision-convnext_tiny",
    "efficientnet-small", "efficientnet-small_odd", "efficientnet-small_torch",
    "keras-VGG16", "keras-ResNet50", "keras-DenseNet121", "keras-InceptionV3",
    "unet-milesial", "unet-smp_resnet18", "unet-smp_vgg11", "segmentation-milesial_bilinear",
    "segmentation-fcn_resnet50",
}  # fmt: skip
TRAINED = {
    "torchvision-vgg11_bn", "torchvision-resnet18", "torchvision-googlenet", "keras-ResNet50", "unet-milesial",
    "efficientnet-small", "efficientnet-small_odd", "efficientnet-small_torch",
}  # fmt: skip
# Only deep tests build these: a smaller network covers each of their parameter name patterns, and `fcn_resnet50` runs
# by default at another size as `segmentation-fcn_resnet50`.
SIBLINGS = {
    "torchvision-resnet34", "torchvision-resnet101", "torchvision-resnet152", "torchvision-resnext101_32x8d",
    "torchvision-wide_resnet101_2", "torchvision-densenet161", "torchvision-densenet169", "torchvision-densenet201",
    "torchvision-convnext_small", "torchvision-convnext_base", "torchvision-fcn_resnet50", "torchvision-fcn_resnet101",
    "timm-convnext_small", "timm-convnext_base", "keras-ResNet101", "keras-ResNet152", "keras-DenseNet169",
    "keras-DenseNet201",
}  # fmt: skip
# Networks whose gradients are compared by default, in float64, so that rounding changes no ReLU's sign.
DIFFERENTIATED = {"torchvision-resnet18", "efficientnet-small_odd"}
# The slowest gradients (up to 15 minutes), of blocks that a smaller network has too; only docs/make_models.py compares
# them.
SLOW = {
    "torchvision-resnext101_32x8d", "torchvision-densenet161", "torchvision-densenet169", "torchvision-densenet201",
    "torchvision-convnext_small", "torchvision-convnext_base", "keras-DenseNet169", "keras-DenseNet201",
}  # fmt: skip


def cases(default, array="tensors", exclude=()):
    """Return the cases with this golden array; those not in `default` are marked as deep."""
    params = []
    for case in CASES:
        name = "-".join(case)
        if case.has(array) and name not in exclude:
            params.append(pytest.param(case, marks=[] if name in default else pytest.mark.deep, id=name))
    return params


# test_round_trip_is_exact covers the other networks.
@pytest.mark.parametrize("case", [c for c in CASES if "-".join(c) not in COMPUTED | SIBLINGS], ids="-".join)
def test_names_and_shapes_match_reference(case):
    assert zoo.naming_errors(case) == []
    assert zoo.num_params(case) == int(case.golden("parameters"))


@pytest.mark.parametrize("case", cases(COMPUTED))
def test_round_trip_is_exact(case):
    assert zoo.round_trip(case) == []
    assert zoo.num_params(case) == int(case.golden("parameters"))


@pytest.mark.parametrize("case", cases(COMPUTED))
def test_inference_matches_reference(case):
    errors = zoo.inference_errors(case)
    assert errors
    assert max(errors.values()) < 1e-4, errors


@pytest.mark.parametrize("case", cases(TRAINED, "train_logits"))
def test_training_matches_reference(case):
    errors = zoo.training_errors(case)
    assert errors
    assert max(errors.values()) < 1e-4, errors


@pytest.mark.parametrize("case", cases(DIFFERENTIATED, "loss", SLOW))
def test_gradients_match_reference(case):
    errors = zoo.gradient_errors(case)
    assert len(errors) == 4
    assert max(errors.values()) < 1e-6, errors


@pytest.mark.deep
@pytest.mark.parametrize("case", [zoo.Case("torchvision", "inception_v3")], ids="-".join)
def test_gradients_match_reference_when_optimized(case):
    # With optimizations, XLA on CPU recomputes the input of a max pool, with different rounding.
    errors = zoo.gradient_errors(case, fast_compile=False)
    assert len(errors) == 4
    assert max(errors.values()) < 1e-6, errors
