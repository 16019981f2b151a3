"""Claim: for small grey pictures unlike ImageNet's, the middle of a frozen VGG-16 says more than its end.

Fashion-MNIST at 64x64, 200 pictures of each class, a linear head on the map of one stage, averaged to 4x4 places and
standardised per channel. Only the stage differs (Yosinski et al. 2014, arXiv:1411.1792, on why depth matters).
"""

from tljax import config


def get_config():
    """The sweep."""
    c = config.default()
    c.data.name = "fashion-mnist"
    c.data.split = "first_per_class"
    c.data.labels_per_class = 200
    c.data.image_size = 64
    c.model.backbone = "vgg16"
    c.model.weights = "vgg16_imagenet_notop"
    c.model.pool = "flatten"
    c.model.pool_size = 4
    c.model.norm = True
    c.strategy.name = "feature_extraction"
    c.optim.name = "rmsprop"
    c.optim.lr = 2e-4
    c.optim.schedule = "cosine"
    c.train.epochs = 10
    c.train.eval_epochs = 5
    c.sweep = {"model.tap": ["stage2", "stage3", "stage4", "stage5"]}
    return c
