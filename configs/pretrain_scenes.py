"""Train a source network to segment single digits: a small U-Net, or with `:vgg16` a narrow VGG-16.

    python run.py --config=configs/pretrain_scenes.py             source of configs/unet_scenes.py
    python run.py --config=configs/pretrain_scenes.py:vgg16       source of configs/vgg16_detector_scenes.py:built_in

Images have 32×32 pixels, which suffice for a single digit: a quarter of the computation of 64×64.
"""

from tljax import config


def get_config(backbone="unet"):
    """Return the config; `backbone` is unet or vgg16."""
    variants = {
        "unet": ("unet", {"widths": (16, 32, 64, 128)}),
        "vgg16": ("vgg16_bn", {"blocks": ((16, 16), (32, 32), (64, 64, 64), (128, 128, 128), (128, 128, 128))}),
    }
    if backbone not in variants:
        raise ValueError(f'There is no variant "{backbone}": choose one of {", ".join(variants)}.')
    c = config.default()
    c.data.name = "scenes"
    c.data.options = {
        "train": 3000,
        "valid": 200,
        "test": 200,
        "side": 32,
        "objects": (1, 1),
        "scale": (0.75, 0.98),
        "palette": "light",
        "seed": 1,
    }
    c.data.image_size = 32
    c.model.backbone, c.model.options = variants[backbone]
    c.model.head = "unet"
    c.strategy.name = "scratch"
    c.strategy.losses = (("cross_entropy", 1.0), ("dice", 1.0))
    c.optim.lr = 3e-3
    c.optim.schedule = "cosine"
    c.optim.warmup_epochs = 0.3
    c.augment.rotate = 10.0
    c.augment.scale = (0.9, 1.1)
    c.augment.translate = 0.05
    c.train.batch_size = 16
    c.train.epochs = 6
    c.train.eval_epochs = 3.0
    return c
