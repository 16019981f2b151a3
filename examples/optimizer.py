"""A custom optimizer: Lion (Chen et al. 2023, arXiv:2302.06675) with decoupled weight decay.

    python run.py --config=examples/optimizer.py

docs/extending.md describes the contract.
"""

import optax

from tljax import config as schema
from tljax.train.optimizer import scale_by_multiplier


def lion(hparams, masks):
    """Return the optimizer of one phase.

    Args:
      hparams: numbers, traced scalars in the compiled step: the learning rate `lr`, `b1`, `b2`, `weight_decay` and the
        others of the config, and everything in `strategy.hparams`.
      masks: `tljax.strategies.Masks` of the trainable parameters by path; biases and norms have no decay.
    """
    return optax.chain(
        optax.scale_by_lion(hparams["b1"], hparams["b2"]),
        optax.add_decayed_weights(hparams["weight_decay"], masks.decay),
        scale_by_multiplier(hparams["lr"], masks.lr_multiplier),
    )


def get_config():
    """Train a small ResNet on the digits: Lion wants a smaller learning rate and a larger decay than Adam."""
    c = schema.default()
    c.model.backbone = "resnet8"
    c.strategy.name = "scratch"
    c.optim.name = "examples/optimizer.py:lion"
    c.optim.lr = 3e-4
    c.optim.b2 = 0.99
    c.optim.weight_decay = 0.1
    c.optim.schedule = "cosine"
    c.train.epochs = 4
    return c
