"""Claim: a source network, a teacher and unlabelled pictures are each worth having when labels are few.

Every strategy by its name alone, on the handwritten digits 5-9: from a network pretrained on 0-4, with a teacher that
has seen all labels of 5-9, and with all other training pictures of 5-9 without their labels. The same rate, budget and
five draws of the labelled pictures for all; docs/strategies.md explains the strategies.
"""

from configs import quickstart

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
    """The sweep."""
    c = quickstart.get_config()
    c.report.next_steps = ()
    c.report.figures = False
    c.report.tensorboard = False
    c.data.unlabelled = -1
    c.strategy.teachers = ("recipe:configs/teacher_digits.py",)
    c.strategy.unlabelled_ratio = 3
    c.strategy.ema_decay = 0.95
    c.sweep = {"strategy.name": list(STRATEGIES), "data.labels_per_class": [10, 50], "seed": range(5)}
    return c
