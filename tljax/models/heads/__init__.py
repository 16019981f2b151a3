"""Heads: modules that read the feature maps of all stages and return the outputs of a task."""

from tljax.models.heads.base import Head
from tljax.models.heads.classifier import Classifier
from tljax.models.heads.detector import Detector
from tljax.models.heads.fcn import FCN
from tljax.models.heads.unet import UNet

__all__ = ["FCN", "HEADS", "Classifier", "Detector", "Head", "UNet"]

HEADS = {
    "classifier": Classifier,
    "unet": UNet,
    "fcn": FCN,
    "detector": Detector,
}
