"""A method that tljax does not have, in a file of its own: Batch Spectral Shrinkage (Chen et al. 2019, NeurIPS).

"Catastrophic Forgetting Meets Negative Transfer: Batch Spectral Shrinkage for Safe Transfer Learning": directions of
the features that a batch hardly uses carry what does not transfer, and are pressed down. It takes an objective, which
is added to the loss, and a strategy, which says in which phase and with what weight:

    python run.py --config=NAME.py --config.strategy.name=docs/batch_spectral_shrinkage.py:batch_spectral_shrinkage
"""

import jax.numpy as jnp

from tljax.config import Phase
from tljax.losses import loss


@loss("maps")
def shrinkage(outputs, batch, reference, hyper):
    """The sum of squares of the smallest singular values of the batch's features [B, C], the averaged last map.

    How many is `strategy.hparams["smallest"]`, one by default, of the min(B, C) that there are.
    """
    # The last map is the one of the fewest places; a dict that was in a compiled step does not keep its order.
    last = min(outputs["maps"].values(), key=lambda x: x.shape[1] * x.shape[2])
    features = last.astype(jnp.promote_types(last.dtype, jnp.float32)).mean((1, 2))
    singular = jnp.linalg.svd(features, compute_uv=False)
    # A mask instead of a slice, so that another number compiles nothing.
    smallest = jnp.arange(len(singular), 0, -1) <= hyper.get("smallest", 1)
    return jnp.square(singular).sum(where=smallest)


def batch_spectral_shrinkage(config, stages, lr):
    """Everything learns; the paper's weight 0.001 is replaced by `strategy.hparams["shrinkage"]`."""
    weight = config.hparams.get("shrinkage", 0.001)
    return [Phase("fine-tune", ((".*", 1.0),), losses=(("cross_entropy", 1.0), (f"{__file__}:shrinkage", weight)))]
