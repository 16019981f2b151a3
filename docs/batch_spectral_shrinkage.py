"""Batch Spectral Shrinkage (Chen et al. 2019, NeurIPS): an example of a custom loss and strategy outside of tljax.

"Catastrophic Forgetting Meets Negative Transfer: Batch Spectral Shrinkage for Safe Transfer Learning" penalizes the
smallest singular values of a batch's features, the directions that do not transfer. The loss is added to the
cross-entropy by the strategy:

    python run.py --config=NAME.py --config.strategy.name=docs/batch_spectral_shrinkage.py:batch_spectral_shrinkage
"""

import jax.numpy as jnp

from tljax.config import Phase
from tljax.losses import loss


@loss("maps")
def shrinkage(outputs, batch, references, hparams):
    """Return the sum of squares of the smallest singular values of the features [B, C], the averaged last feature map.

    `strategy.hparams["smallest"]` is the number of singular values, of min(B, C); 1 by default.
    """
    # The last feature map is the smallest one; a dict that went through a compiled step does not keep its order.
    last_map = min(outputs["maps"].values(), key=lambda x: x.shape[1] * x.shape[2])
    features = last_map.astype(jnp.promote_types(last_map.dtype, jnp.float32)).mean((1, 2))
    singular_values = jnp.linalg.svd(features, compute_uv=False)
    # A mask instead of a slice, so that another value of "smallest" does not recompile the step.
    is_smallest = jnp.arange(len(singular_values), 0, -1) <= hparams.get("smallest", 1)
    return jnp.square(singular_values).sum(where=is_smallest)


def batch_spectral_shrinkage(config, stages, lr):
    """Return one phase that trains everything; `strategy.hparams["shrinkage"]` replaces the paper's weight 0.001."""
    weight = config.hparams.get("shrinkage", 0.001)
    return [Phase("fine-tune", ((".*", 1.0),), losses=(("cross_entropy", 1.0), (f"{__file__}:shrinkage", weight)))]
