"""Every network beside the reference implementation's numbers (tests/golden/make_zoo.py)."""

import pytest

from tests.models import zoo

CASES = zoo.cases()
# One of each kind of block, norm and layout trains here; `pytest -m deep` trains their deeper and wider siblings.
TRAINED = {
    "torchvision": ("vgg11", "vgg13_bn", "resnet18", "resnet50", "resnext50_32x4d", "densenet121", "googlenet",
                    "inception_v3", "convnext_tiny"),
    "keras": ("VGG16", "ResNet50", "DenseNet121", "InceptionV3"),
    "unet": ("milesial",),
}  # fmt: skip


def trained(what):
    return [
        pytest.param(
            case, marks=[] if case.variant in TRAINED.get(case.reference, ()) else pytest.mark.deep, id="-".join(case)
        )
        for case in CASES
        if case.has(what)
    ]


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_weights_go_in_and_come_out_to_the_bit(case):
    assert zoo.round_trip(case) == []
    if case.whole:
        assert zoo.parameters(case) == int(case.golden("parameters"))


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_inference_equals_the_reference(case):
    errors = zoo.inference_errors(case)
    assert errors
    assert max(errors.values()) < 1e-4, errors


@pytest.mark.parametrize("case", trained("train_logits"))
def test_training_mode_and_statistics_equal_the_reference(case):
    errors = zoo.training_errors(case)
    assert errors
    assert max(errors.values()) < 1e-4, errors


@pytest.mark.parametrize("case", trained("loss"))
def test_gradients_equal_the_reference(case):
    errors = zoo.gradient_errors(case)
    assert len(errors) == 4
    assert max(errors.values()) < 1e-6, errors
