"""Source network for the quickstart: a small ResNet on the handwritten digits 0-4, from scratch."""

from tljax import config


def get_config():
    """The recipe."""
    c = config.default()
    c.data.name = "digits"
    c.data.classes = (0, 1, 2, 3, 4)
    c.model.backbone = "resnet8"
    c.strategy.name = "scratch"
    c.optim.name = "nesterov"
    c.optim.lr = 0.05
    c.optim.schedule = "cosine"
    c.optim.weight_decay = 1e-3
    c.augment.crop_padding = 1
    c.train.batch_size = 32
    c.train.epochs = 20
    c.train.eval_epochs = 4
    return c
