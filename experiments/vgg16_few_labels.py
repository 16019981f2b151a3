"""Hypothesis: with few labels, ImageNet's features beat random weights, whichever part of the network is trained.

Fashion-MNIST with 10 and 50 labels per class; VGG-16 up to its second block, whose features are averaged to 4x4 and
standardized per channel under a linear layer. Random weights, frozen, fine-tuned, and LP-FT, with the same network,
learning rate, budget and five draws of the labeled images.
"""

from tljax import config


def get_config():
    """Return the sweep's config."""
    c = config.default()
    c.data.name = "fashion-mnist"
    c.data.valid_fraction = 0.01
    c.data.image_size = 28
    c.model.backbone = "vgg16"
    c.model.weights = "vgg16_imagenet_notop"
    c.model.out_stage = "stage2"
    c.model.pool = "flatten"
    c.model.pool_size = 4
    c.model.norm = "batch"
    c.optim.name = "adam"
    c.optim.lr = 1e-3
    c.optim.schedule = "cosine"
    c.train.batch_size = 8
    c.train.epochs = 10
    c.train.eval_epochs = 5
    c.report.figures = False
    c.report.tensorboard = False
    c.sweep = {
        "strategy.name": ["scratch", "feature_extraction", "full", "lp_ft"],
        "data.labels_per_class": [10, 50],
        "seed": range(5),
    }
    return c
