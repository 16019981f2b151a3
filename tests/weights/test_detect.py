"""Detection of the backbone of a file by names and shapes alone."""

import numpy as np
import pytest

from tests.models.zoo import Case, checkpoint_shapes
from tljax.errors import UserError
from tljax.weights.detect import detect_backbone


@pytest.mark.parametrize(
    ("reference", "variant", "expected"),
    [
        ("torchvision", "vgg11_bn", ("vgg11_bn", "torchvision")),
        ("torchvision", "resnet50", ("resnet50", "torchvision")),
        # Nine other ResNets have the same names and are built first.
        pytest.param("torchvision", "wide_resnet50_2", ("wide_resnet50_2", "torchvision"), marks=pytest.mark.deep),
        ("torchvision", "densenet121", ("densenet121", "torchvision")),
        ("torchvision", "googlenet", ("googlenet", "torchvision")),
        ("torchvision", "inception_v3", ("inception_v3", "torchvision")),
        ("torchvision", "convnext_tiny", ("convnext_tiny", "torchvision")),
        ("timm", "vgg11", ("vgg11", "timm")),
        ("timm", "convnext_tiny", ("convnext_tiny", "timm")),
        ("efficientnet", "tf_efficientnet_lite2", ("efficientnet_lite2", "timm")),
        ("keras", "VGG16", ("vgg16", "keras")),
        ("keras", "ResNet50", ("resnet50_v1", "keras")),
        ("keras", "DenseNet121", ("densenet121_keras", "keras")),
        ("keras", "InceptionV3", ("inception_v3_keras", "keras")),
        ("unet", "milesial", ("unet", "milesial")),
        ("unet", "smp_resnet18", ("resnet18", "smp")),
    ],
)
def test_detect_backbone_and_layout(reference, variant, expected):
    best = detect_backbone(checkpoint_shapes(Case(reference, variant)))
    assert (best.backbone, best.layout) == expected
    assert best.match.complete
    assert best.num_mismatches == 0


def test_detect_backbone_without_auxiliary_classifiers():
    # Keras' Inception v3, without auxiliary heads, has torchvision's layout too; it is tried if none fits completely.
    tensors = checkpoint_shapes(Case("torchvision", "inception_v3"))
    tensors.pop("fc.bias")
    best = detect_backbone(tensors)
    assert (best.backbone, best.layout, best.match.missing) == ("inception_v3", "torchvision", ["head/dense/bias"])


def test_detect_backbone_refuses_unknown_tensors():
    with pytest.raises(UserError, match=r"^No backbone has tensors named like x, y, fc\.bias\.$"):
        detect_backbone({"x": np.ones(1), "y": np.ones(1), "fc.bias": np.ones(1)})
    with pytest.raises(UserError, match=r"^There are no tensors to detect a backbone from\.$"):
        detect_backbone({})
