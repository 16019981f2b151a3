"""A run of the smallest network that has BatchNorm and a stage that can stay frozen: its programs compile quickly."""

import contextlib

import pytest

from tljax import config as schema
from tljax.train import replicas

# Two convolutions: `stem` and `stage2`.
VGG = {"blocks": ((4,), (8,))}


def config(workdir):
    """A config of two phases on three digits, with BatchNorm, dropout and augmentation."""
    c = schema.default()
    c.workdir = str(workdir)
    c.data.classes, c.data.labels_per_class = (1, 2, 3), 12
    c.model.backbone, c.model.options, c.model.dropout = "vgg11_bn", VGG, 0.2
    c.strategy.name = "custom"
    c.strategy.phases = (
        schema.Phase("head", (("head/.*", 1.0), (".*", 0.0))),
        schema.Phase("top", (("stage2/.*", 0.5), ("head/.*", 1.0), (".*", 0.0)), optim={"name": "nesterov"}),
    )
    c.augment.crop_padding = 1
    c.optim.lr, c.train.batch_size, c.train.epochs = 0.01, 8, 4
    c.report.figures = c.report.tensorboard = False
    c.cache.storage = "none"  # fewer programs to compile; tests/train/test_feature_cache.py is about the others
    return c


@contextlib.contextmanager
def watched_programs():
    """Yields a set that grows by what shapes a program whenever training asks for another one."""
    asked, compile_replicas = set(), replicas.compile_replicas

    def make(*shape):
        asked.add(shape)
        return compile_replicas(*shape)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replicas, "compile_replicas", make)
        yield asked
