"""Hypothesis: the best strategy depends on the number of labels, and newer strategies are not always better.

Every strategy on Fashion-MNIST's sandals, shirts, sneakers, bags and boots with 10 and 50 labels per class, from a
ResNet-8 pretrained on the other five classes, with a teacher trained on all labels and with 2,000 unlabeled images.
Learning rate, budget and five draws of the labeled images are the same for all. docs/strategies.md has the results.
"""

from experiments import strategies_digits
from tljax import config


def get_config():
    """Return the sweep's config."""
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
