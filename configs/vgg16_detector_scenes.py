"""Detect digits on textured backgrounds with a frozen VGG-16 (its first 19 layers) under a feature pyramid.

    python run.py --config=configs/vgg16_detector_scenes.py               ImageNet's weights, from TLJAX_WEIGHTS_DIR
    python run.py --config=configs/vgg16_detector_scenes.py:deconv        the same under one transposed convolution
    python run.py --config=configs/vgg16_detector_scenes.py:built_in      a narrow VGG-16, pretrained on single digits
    python run.py --config=configs/vgg16_detector_scenes.py:scratch       the narrow one, trained from random weights

The usual script, `deconv`, uses only the last feature map, in which a digit is two locations wide. The pyramid uses the
last three strides. Both have the targets and losses of FCOS (arXiv:1904.01355). Without TLJAX_WEIGHTS_DIR the default
is `built_in`.
"""

import os

from tljax import config

VARIANTS = ("imagenet", "deconv", "built_in", "scratch")


def get_config(variant=None):
    """Return the config; `variant` is imagenet (the default with TLJAX_WEIGHTS_DIR), deconv, built_in or scratch."""
    variant = variant or ("imagenet" if "TLJAX_WEIGHTS_DIR" in os.environ else "built_in")
    if variant not in VARIANTS:
        raise ValueError(f'There is no variant "{variant}": choose one of {", ".join(VARIANTS)}.')
    c = config.default()
    c.data.name = "scenes"
    c.data.options = {"train": 1000, "objects": (1, 2), "scale": (0.4, 0.6), "palette": "light"}
    c.model.backbone = "vgg16"
    c.model.head = "detector"
    c.strategy.name = "feature_extraction"
    if variant in ("imagenet", "deconv"):
        c.model.weights = "vgg16_imagenet_notop"
        c.data.image_size = 128
    else:
        c.model.backbone = "vgg16_bn"
        c.model.options = {"blocks": ((16, 16), (32, 32), (64, 64, 64), (128, 128, 128), (128, 128, 128))}
        c.data.options = c.data.options | {"train": 200}
        c.data.image_size = 64
        if variant == "built_in":
            c.model.weights = "recipe:configs/pretrain_scenes.py:vgg16"
        else:
            c.strategy.name = "scratch"
    if variant != "deconv":
        levels = 3 if variant == "imagenet" else 4
        c.model.head_options = {"neck": "fpn", "levels": levels, "channels": 128, "tower": 1}
    c.optim.lr = 1e-3
    c.optim.schedule = "cosine"
    c.train.batch_size = 16
    c.train.epochs = 12
    c.train.eval_epochs = 4
    return c
