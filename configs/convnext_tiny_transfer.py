"""Fine-tune ConvNeXt-T from ImageNet-22k with AdamW, layer-wise learning rates and stochastic depth (arXiv:2201.03545).

    python run.py --config=configs/convnext_tiny_transfer.py                  Fashion-MNIST, 20 labels per class
    python run.py --config=configs/convnext_tiny_transfer.py --config.strategy.name=feature_extraction
    python run.py --config=configs/convnext_tiny_transfer.py \\
        --config.model.weights=torchvision:convnext_tiny.IMAGENET1K_V1

Downloads 178 MB from the Hugging Face Hub once. Use a GPU: XLA's depthwise convolutions are slow on CPU.
"""

from tljax import config


def get_config():
    """Return the config."""
    c = config.default()
    c.data.name = "fashion-mnist"
    c.data.labels_per_class = 20
    c.data.image_size = 96
    c.model.backbone = "convnext_tiny"
    c.model.weights = "hf:timm/convnext_tiny.fb_in22k"
    c.model.options = {"drop_path": 0.1}
    c.strategy.name = "full"
    c.strategy.layer_decay = 0.7
    c.optim.name = "adamw"
    c.optim.lr = 1e-3
    c.optim.warmup_epochs = 2.0
    c.optim.schedule = "cosine"
    c.optim.weight_decay = 0.05
    c.optim.label_smoothing = 0.1
    c.augment.flip = True
    c.augment.crop_padding = 2
    c.train.epochs = 20
    return c
