"""Fine-tune ResNet-50 from ImageNet: a linear probe, then everything, with SGD (LP-FT, Kumar et al. 2022).

    python run.py --config=configs/resnet50_transfer.py                       Fashion-MNIST, 20 labels per class
    python run.py --config=configs/resnet50_transfer.py --config.data.name=tfds:oxford_flowers102
    python run.py --config=configs/resnet50_transfer.py --config.model.weights=torchvision:resnet50.IMAGENET1K_V2

Downloads 102 MB from the Hugging Face Hub once. `python -m tljax.weights list '*resnet50*'` lists other weights.
Kumar et al. 2022, arXiv:2202.10054.
"""

from tljax import config


def get_config():
    """Return the config."""
    c = config.default()
    c.data.name = "fashion-mnist"
    c.data.labels_per_class = 20
    c.data.image_size = 96
    c.model.backbone = "resnet50"
    c.model.weights = "hf:timm/resnet50.a1_in1k"
    c.strategy.name = "lp_ft"
    c.strategy.probe_fraction = 0.3
    c.optim.name = "momentum"
    c.optim.lr = 0.01
    c.optim.schedule = "cosine"
    c.optim.weight_decay = 1e-4
    c.augment.flip = True
    c.augment.crop_padding = 2
    c.train.epochs = 20
    return c
