"""Every network beside the reference implementation's numbers (tests/golden/make_zoo.py).

Names, shapes and sizes of all of them are compared here. One of each kind of block, norm and layout computes, too;
`pytest -m deep` computes their deeper and wider siblings, in about half an hour.
"""

import pytest

from tests.models import zoo

CASES = zoo.cases()
COMPUTED = {
    "torchvision-vgg11", "torchvision-vgg16_bn", "torchvision-resnet18", "torchvision-resnet50",
    "torchvision-resnext50_32x4d", "torchvision-wide_resnet50_2", "torchvision-densenet121", "torchvision-googlenet",
    "torchvision-inception_v3", "torchvision-convnext_tiny", "torchvision-fcn_resnet50", "timm-vgg11", "keras-VGG16",
    "timm-convnext_tiny", "keras-ResNet50", "keras-DenseNet121", "keras-InceptionV3", "unet-milesial",
    "unet-smp_resnet18", "unet-smp_vgg16_bn", "segmentation-milesial_bilinear", "segmentation-fcn_resnet50",
}  # fmt: skip
TRAINED = {
    "torchvision-vgg16_bn", "torchvision-resnet50", "torchvision-googlenet", "keras-ResNet50", "keras-InceptionV3",
    "unet-milesial",
}  # fmt: skip
# What autodiff makes of these is tested, in float64, so that no ReLU tips over by rounding.
DIFFERENTIATED = {"torchvision-vgg11", "torchvision-resnet18"}


def cases(everyday, what="tensors"):
    """All cases that have `what`; those that are not for every day are marked."""
    return [
        pytest.param(case, marks=[] if "-".join(case) in everyday else pytest.mark.deep, id="-".join(case))
        for case in CASES
        if case.has(what)
    ]


# The others are ported whole below.
@pytest.mark.parametrize("case", [c for c in CASES if "-".join(c) not in COMPUTED], ids="-".join)
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


@pytest.mark.parametrize("case", cases(DIFFERENTIATED, "loss"))
def test_gradients_equal_the_reference(case):
    errors = zoo.gradient_errors(case)
    assert len(errors) == 4
    assert max(errors.values()) < 1e-6, errors
