"""Train the source network of configs/pretrain_transfer.py: a small ResNet on the digits 0-4, from random weights.

Label smoothing, shifts and strong weight decay keep its features from collapsing onto the five source classes, so they
transfer better to other digits (docs/pretrain_transfer.md).
"""

from tljax import config


def get_config():
    """Return the config."""
    c = config.default()
    c.data.name = "digits"
    c.data.classes = (0, 1, 2, 3, 4)
    c.model.backbone = "resnet8"
    c.strategy.name = "scratch"
    c.optim.name = "nesterov"
    c.optim.lr = 0.05
    c.optim.schedule = "cosine"
    c.optim.weight_decay = 0.02
    c.optim.label_smoothing = 0.2
    c.augment.crop_padding = 2
    c.train.batch_size = 32
    c.train.epochs = 60
    c.train.eval_epochs = 20
    return c
