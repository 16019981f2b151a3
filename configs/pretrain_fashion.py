"""Train a source network on Fashion-MNIST's t-shirts, trousers, pullovers, dresses and coats, from random weights.

    python run.py --config=configs/pretrain_fashion.py             all 30,000 labels of classes 0-4
    python run.py --config=configs/pretrain_fashion.py:teacher     classes 5-9: a teacher for experiments on them

Needs the data in TLJAX_DATA_DIR (or --config.data.path).
"""

from tljax import config


def get_config(variant="source"):
    """Return the config; `variant` is source or teacher."""
    if variant not in ("source", "teacher"):
        raise ValueError(f'There is no variant "{variant}": choose source or teacher.')
    c = config.default()
    c.data.name = "fashion-mnist"
    c.data.classes = (0, 1, 2, 3, 4) if variant == "source" else (5, 6, 7, 8, 9)
    c.data.valid_fraction = 0.05
    c.model.backbone = "resnet8"
    c.strategy.name = "scratch"
    c.optim.name = "nesterov"
    c.optim.lr = 0.05
    c.optim.schedule = "cosine"
    c.optim.weight_decay = 5e-4
    c.augment.flip = True
    c.augment.crop_padding = 2
    c.train.batch_size = 128
    c.train.epochs = 4
    return c
