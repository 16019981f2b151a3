"""Hypothesis: with few labels, a source network, a teacher and unlabeled images each improve the accuracy.

Every strategy on the handwritten digits 5-9: from a network pretrained on 0-4, with a teacher trained on all labels of
5-9, and with all other training images of 5-9 without labels. Learning rate, budget and five draws of the labeled
images are the same for all. docs/strategies.md describes the strategies.
"""

from configs import pretrain_transfer

STRATEGIES = (
    "scratch",
    "feature_extraction",
    "freeze_last",
    "full",
    "lp_ft",
    "finetune",
    "gradual_unfreeze",
    "micro",
    "distillation",
    "attention_transfer",
    "fitnets",
    "delta",
    "lwf",
    "pseudo_label",
    "fixmatch",
    "mean_teacher",
)


def get_config():
    """Return the sweep's config."""
    c = pretrain_transfer.get_config()
    c.report.next_steps = ()
    c.report.figures = False
    c.report.tensorboard = False
    c.data.unlabelled = -1
    c.strategy.teachers = ("recipe:configs/teacher_digits.py",)
    c.strategy.unlabelled_ratio = 3
    c.strategy.ema_decay = 0.95
    c.sweep = {"strategy.name": list(STRATEGIES), "data.labels_per_class": [10, 50], "seed": range(5)}
    return c
