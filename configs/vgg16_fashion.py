"""VGG16."""

from tljax import config


def get_config():
    """The recipe."""
    c = config.default()
    c.data.name = "fashion-mnist"
    c.data.split = "first_per_class"
    c.data.labels_per_class = 200
    c.data.image_size = 64
    c.model.backbone = "vgg16"
    c.model.weights = "vgg16_imagenet_notop"
    c.model.pool = "flatten"
    c.strategy.name = "feature_extraction"
    c.optim.name = "rmsprop"
    c.optim.lr = 1e-3
    c.train.batch_size = 32
    c.train.epochs = 10
    return c
