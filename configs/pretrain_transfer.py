"""Pretrain on the handwritten digits 0-4, then transfer to 5-9 with ten labels per class.

Compares training from scratch, feature extraction, and linear probing followed by fine-tuning (LP-FT), with the same
network, budget and learning rate, over three draws of the ten labels. docs/pretrain_transfer.md explains the result.
"""

from tljax import config


def get_config():
    """Return the config."""
    c = config.default()
    c.data.name = "digits"
    c.data.classes = (5, 6, 7, 8, 9)
    c.data.labels_per_class = 10
    c.model.backbone = "resnet8"
    c.model.weights = "recipe:configs/pretrain_digits.py"
    c.strategy.lr_scale = 0.5
    c.optim.name = "nesterov"
    c.optim.lr = 0.02
    c.optim.schedule = "cosine"
    c.train.batch_size = 32
    c.train.epochs = 60
    c.train.eval_epochs = 10
    c.sweep = {"strategy.name": ["scratch", "feature_extraction", "lp_ft"], "seed": [0, 1, 2]}
    c.report.next_steps = (
        "Show what each phase trains and costs:",
        "  python run.py --config=configs/pretrain_transfer.py --mode=plan",
        "Use fifty labels per class instead of ten:",
        "  python run.py --config=configs/pretrain_transfer.py --config.data.labels_per_class=50 --workdir=runs/fifty",
    )
    return c
