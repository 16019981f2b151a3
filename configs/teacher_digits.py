"""Train a teacher for the digits 5-9: the network of configs/pretrain_transfer.py, twice as wide, with all labels."""

from configs import pretrain_digits


def get_config():
    """Return the config."""
    c = pretrain_digits.get_config()
    c.data.classes = (5, 6, 7, 8, 9)
    c.model.options = {"widths": (32, 64, 128)}
    c.optim.weight_decay = 5e-4
    c.optim.label_smoothing = 0.0
    c.augment.crop_padding = 1
    c.train.epochs = 40
    return c
