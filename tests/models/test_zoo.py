"""Every network beside the reference implementation's numbers (tests/golden/make_zoo.py).

Every day, the smallest network of each kind of block, norm and layout computes, and the names, shapes and sizes of the
others are compared. `pytest -m deep` computes all of them, and the gradients of most.
"""

import pytest

from tests.models import zoo

CASES = zoo.cases()
COMPUTED = {
    "torchvision-vgg11_bn", "torchvision-resnet18", "torchvision-resnet50", "torchvision-resnext50_32x4d",
    "torchvision-densenet121", "torchvision-googlenet", "torchvision-inception_v3", "torchvision-convnext_tiny",
    "keras-VGG16", "keras-ResNet50", "keras-DenseNet121", "keras-InceptionV3",
    "unet-milesial", "unet-smp_resnet18", "unet-smp_vgg11", "segmentation-milesial_bilinear",
    "segmentation-fcn_resnet50",
}  # fmt: skip
TRAINED = {
    "torchvision-vgg11_bn", "torchvision-resnet18", "torchvision-googlenet", "keras-ResNet50", "unet-milesial",
}  # fmt: skip
# A smaller network proves each pattern in the names of these; `fcn_resnet50` computes every day at another size, as
# `segmentation-fcn_resnet50`. Only deep tests build them.
SIBLINGS = {
    "torchvision-resnet34", "torchvision-resnet101", "torchvision-resnet152", "torchvision-resnext101_32x8d",
    "torchvision-wide_resnet101_2", "torchvision-densenet161", "torchvision-densenet169", "torchvision-densenet201",
    "torchvision-convnext_small", "torchvision-convnext_base", "torchvision-fcn_resnet50", "torchvision-fcn_resnet101",
    "timm-convnext_small", "timm-convnext_base", "keras-ResNet101", "keras-ResNet152", "keras-DenseNet169",
    "keras-DenseNet201",
}  # fmt: skip
# What autodiff makes of this one is tested, in float64, so that no ReLU tips over by rounding.
DIFFERENTIATED = {"torchvision-resnet18"}
# The slowest gradients, up to a quarter of an hour, of blocks that a smaller sibling has too: only docs/make_models.py
# compares them.
SLOW = {
    "torchvision-resnext101_32x8d", "torchvision-densenet161", "torchvision-densenet169", "torchvision-densenet201",
    "torchvision-convnext_small", "torchvision-convnext_base", "keras-DenseNet169", "keras-DenseNet201",
}  # fmt: skip


def cases(everyday, what="tensors", without=()):
    """The cases that have `what`; those that are not for every day are marked."""
    found = []
    for case in CASES:
        name = "-".join(case)
        if case.has(what) and name not in without:
            found.append(pytest.param(case, marks=[] if name in everyday else pytest.mark.deep, id=name))
    return found


# The others are ported whole below.
@pytest.mark.parametrize("case", [c for c in CASES if "-".join(c) not in COMPUTED | SIBLINGS], ids="-".join)
def test_every_tensor_has_its_place(case):
    assert zoo.misplaced(case) == []
    assert zoo.parameters(case) == int(case.golden("parameters"))


@pytest.mark.parametrize("case", cases(COMPUTED))
def test_weights_go_in_and_come_out_to_the_bit(case):
    assert zoo.round_trip(case) == []
    assert zoo.parameters(case) == int(case.golden("parameters"))


@pytest.mark.parametrize("case", cases(COMPUTED))
def test_inference_equals_the_reference(case):
    errors = zoo.inference_errors(case)
    assert errors
    assert max(errors.values()) < 1e-4, errors


@pytest.mark.parametrize("case", cases(TRAINED, "train_logits"))
def test_training_mode_and_statistics_equal_the_reference(case):
    errors = zoo.training_errors(case)
    assert errors
    assert max(errors.values()) < 1e-4, errors


@pytest.mark.parametrize("case", cases(DIFFERENTIATED, "loss", SLOW))
def test_gradients_equal_the_reference(case):
    errors = zoo.gradient_errors(case)
    assert len(errors) == 4
    assert max(errors.values()) < 1e-6, errors


@pytest.mark.deep
@pytest.mark.parametrize("case", [zoo.Case("torchvision", "inception_v3")], ids="-".join)
def test_gradients_equal_the_reference_under_the_default_optimizations(case):
    # A processor then computes what a pool looks at more than once, and not to the same bits.
    errors = zoo.gradient_errors(case, quick=False)
    assert len(errors) == 4
    assert max(errors.values()) < 1e-6, errors
