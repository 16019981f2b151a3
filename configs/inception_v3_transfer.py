"""Fine-tune Inception v3 from ImageNet with RMSprop and its auxiliary classifier (arXiv:1512.00567).

    python run.py --config=configs/inception_v3_transfer.py                   Fashion-MNIST, 20 labels per class
    python run.py --config=configs/inception_v3_transfer.py --config.data.image_size=160 --config.model.aux_weight=0
    python run.py --config=configs/inception_v3_transfer.py --config.model.aux_weight=0 \\
        --config.model.backbone=inception_v3_keras --config.model.weights=keras:inception_v3_notop

Downloads 109 MB from the Hugging Face Hub once. Use a GPU: the auxiliary classifier requires 299 pixels.
"""

from tljax import config


def get_config():
    """Return the config."""
    c = config.default()
    c.data.name = "fashion-mnist"
    c.data.labels_per_class = 20
    c.model.backbone = "inception_v3"
    c.model.weights = "hf:timm/inception_v3.tv_in1k"
    c.model.dropout = 0.5
    c.model.aux_weight = 0.4
    c.strategy.name = "full"
    c.optim.name = "rmsprop"
    c.optim.lr = 1e-4
    c.optim.schedule = "cosine"
    c.optim.label_smoothing = 0.1
    c.augment.flip = True
    c.augment.crop_padding = 2
    c.train.epochs = 20
    return c
