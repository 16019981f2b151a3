"""The smallest network that has BatchNorm and a stage to freeze, so that its programs compile quickly."""

import contextlib

import pytest

from tljax import config as schema
from tljax.train import replicas

# Two convolutions: `stem` and `stage2`.
VGG = {"blocks": ((4,), (8,))}


def config(workdir):
    """Return a config of two phases on three digits, with BatchNorm, dropout and augmentation."""
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
    c.cache.storage = "none"  # fewer programs to compile; the cache has its own tests
    return c


@contextlib.contextmanager
def record_programs():
    """Yield a set of the arguments of `compile_replicas`: each element is one program that training has requested."""
    programs = set()
    compile_replicas = replicas.compile_replicas

    def record(*arguments):
        programs.add(arguments)
        return compile_replicas(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replicas, "compile_replicas", record)
        yield programs
