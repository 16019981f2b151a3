"""Train a linear head on ImageNet's VGG-16, frozen: Fashion-MNIST with 200 images per class.

    python run.py --config=configs/vgg16_fashion.py              block 3, standardized: 0.91 on validation
    python run.py --config=configs/vgg16_fashion.py:classic      the usual script, block 5, Flatten + Dense: 0.81
    python run.py --config=configs/vgg16_fashion.py:scratch      a small ResNet from random weights: 0.86

docs/vgg16_fashion.md explains the differences. Needs the weights in TLJAX_WEIGHTS_DIR and the data in TLJAX_DATA_DIR
(or --config.data.path).
"""

from tljax import config


def get_config(variant="tapped"):
    """Return the config; `variant` is tapped, classic or scratch."""
    c = config.default()
    c.data.name = "fashion-mnist"
    c.data.split = "first_per_class"
    c.data.labels_per_class = 200
    c.train.batch_size = 32
    if variant == "scratch":
        c.model.backbone = "resnet8"
        c.strategy.name = "scratch"
        c.optim.name = "nesterov"
        c.optim.lr = 0.05
        c.optim.schedule = "cosine"
        c.optim.weight_decay = 5e-4
        c.augment.flip = True
        c.augment.crop_padding = 2
        c.train.epochs = 30
        return c
    c.optim.name = "rmsprop"
    c.train.epochs = 10
    c.data.image_size = 64
    c.model.backbone = "vgg16"
    c.model.weights = "vgg16_imagenet_notop"
    c.model.pool = "flatten"
    c.strategy.name = "feature_extraction"
    if variant == "tapped":
        c.model.out_stage = "stage3"
        c.model.pool_size = 8
        c.model.norm = "batch"
        c.optim.lr = 2e-4
        c.optim.schedule = "cosine"
    elif variant != "classic":
        raise ValueError(f'There is no variant "{variant}": choose tapped, classic or scratch.')
    return c
