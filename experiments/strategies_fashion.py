"""Claim: which strategy is best depends on the labels there are; none is best because it is the newest.

Every strategy by its name alone, on Fashion-MNIST's sandals, shirts, sneakers, bags and boots with 10 and 50 labels of
each, from a ResNet-8 pretrained on the other five classes; with a teacher that has seen all labels, and 2,000 pictures
without labels. The same rate, budget and five draws of the labelled pictures for all. docs/strategies.md has the table.
"""

from experiments import strategies_digits
from tljax import config


def get_config():
    """The sweep."""
    c = config.default()
    c.data.name = "fashion-mnist"
    c.data.classes = (5, 6, 7, 8, 9)
    c.data.valid_fraction = 0.02
    c.data.unlabelled = 2000
    c.model.backbone = "resnet8"
    c.model.weights = "recipe:configs/pretrain_fashion.py"
    c.strategy.teachers = ("recipe:configs/pretrain_fashion.py:teacher",)
    c.strategy.lr_scale = 0.5
    c.strategy.unlabelled_ratio = 3
    c.strategy.ema_decay = 0.95
    c.optim.name = "nesterov"
    c.optim.lr = 0.02
    c.optim.schedule = "cosine"
    c.train.batch_size = 16
    c.train.epochs = 24
    c.train.eval_epochs = 6
    c.report.figures = False
    c.report.tensorboard = False
    c.sweep = strategies_digits.get_config().sweep
    return c
