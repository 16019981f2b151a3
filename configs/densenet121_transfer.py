"""Fine-tune DenseNet-121 from ImageNet by gradual unfreezing from the top, with Adam (ULMFiT).

    python run.py --config=configs/densenet121_transfer.py                    Fashion-MNIST, 20 labels per class
    python run.py --config=configs/densenet121_transfer.py --config.strategy.name=feature_extraction
    python run.py --config=configs/densenet121_transfer.py \\
        --config.model.backbone=densenet121_keras --config.model.weights=keras:densenet121_notop

Downloads 32 MB from the Hugging Face Hub once. Howard & Ruder 2018, arXiv:1801.06146.
"""

from tljax import config


def get_config():
    """Return the config."""
    c = config.default()
    c.data.name = "fashion-mnist"
    c.data.labels_per_class = 20
    c.data.image_size = 96
    c.model.backbone = "densenet121"
    c.model.weights = "hf:timm/densenet121.ra_in1k"
    c.strategy.name = "gradual_unfreeze"
    c.strategy.probe_fraction = 0.3
    c.optim.lr = 1e-3
    c.augment.flip = True
    c.augment.crop_padding = 2
    c.train.epochs = 20
    return c
