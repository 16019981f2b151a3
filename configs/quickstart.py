"""Both halves of transfer on scikit-learn's handwritten digits: pretrain on 0-4, then learn 5-9 from ten of each.

Compares training from scratch, feature extraction, and linear probing followed by fine-tuning, over three seeds.
"""

from tljax import config


def get_config():
    """The recipe."""
    c = config.default()
    c.data.name = "digits"
    c.data.classes = (5, 6, 7, 8, 9)
    c.data.labels_per_class = 10
    c.model.backbone = "resnet8"
    c.model.weights = "recipe:configs/pretrain_digits.py"
    c.optim.name = "nesterov"
    c.optim.lr = 0.05
    c.optim.schedule = "cosine"
    c.augment.crop_padding = 1
    c.train.batch_size = 32
    c.train.epochs = 60
    c.train.eval_epochs = 10
    c.sweep = {"strategy.name": ["scratch", "feature_extraction", "lp_ft"], "seed": [0, 1, 2]}
    c.report.next_steps = (
        "python run.py --config=configs/quickstart.py --mode=plan     what learns, and what it costs",
    )
    return c
