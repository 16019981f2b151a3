"""Segment digits on textured backgrounds with a U-Net: pretrained on single digits, then fine-tuned.

    python run.py --config=configs/unet_scenes.py                 pretraining and fine-tuning: under 5 minutes, 2 cores
    python run.py --config=configs/unet_scenes.py:scratch         the same images and steps, from random weights
    python run.py --workdir=runs/unet_scenes --mode=predict --input=IMAGE_OR_FOLDER

No download. Images have 64×64 pixels with one or two digits of any class, color, size and position.
"""

from tljax import config


def get_config(variant="transfer"):
    """Return the config; `variant` is transfer or scratch."""
    if variant not in ("transfer", "scratch"):
        raise ValueError(f'There is no variant "{variant}": choose transfer or scratch.')
    c = config.default()
    c.data.name = "scenes"
    c.data.options = {"train": 2000, "objects": (1, 2), "scale": (0.45, 0.65), "palette": "light"}
    c.data.image_size = 64
    c.model.backbone = "unet"
    c.model.options = {"widths": (16, 32, 64, 128)}
    c.model.head = "unet"
    if variant == "transfer":
        c.model.weights = "recipe:configs/pretrain_scenes.py"
        c.strategy.name = "full"
    else:
        c.strategy.name = "scratch"
    c.strategy.losses = (("cross_entropy", 1.0), ("dice", 1.0))
    c.optim.lr = 4e-3
    c.optim.schedule = "cosine"
    c.optim.warmup_epochs = 0.2
    c.augment.rotate = 10.0
    c.augment.scale = (0.9, 1.1)
    c.augment.translate = 0.05
    c.train.batch_size = 16
    c.train.epochs = 5
    c.train.eval_epochs = 2.5
    return c
