"""Public masks: a custom Optax chain trains, decays and freezes the parameters that the rules of a phase select."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tljax import models
from tljax.config import Phase
from tljax.errors import UserError
from tljax.models import params as params_lib
from tljax.strategies import masks

RULES = (("stage2/.*", 0.1), ("head/.*", 1.0), (".*", 0.0))
PHASE = Phase("top", RULES)


@pytest.fixture(scope="module")
def model():
    options = {"depths": (1, 1), "widths": (4, 4)}
    return models.create_model("resnet8", num_classes=3, image_size=8, options=options, rngs=nnx.Rngs(0))


def test_masks_follow_the_rules(model):
    params = params_lib.flatten_model(model).params
    flat = masks(params, PHASE)
    for path in params:
        rate = 1.0 if path.startswith("head/") else 0.1 if path.startswith("stage2/") else 0.0
        assert flat.lr_multiplier[path] == rate
        assert flat.trainable[path] == (rate > 0)
        assert flat.decay[path] == (rate > 0 and path.endswith("/kernel"))


def test_masks_have_the_structure_of_the_tree(model):
    state = nnx.state(model, nnx.Param)
    nested = nnx.to_pure_dict(state)
    flat = masks(params_lib.flatten_model(model).params, PHASE)
    for tree in (state, nested):
        tree_masks = masks(tree, PHASE)
        for mask, expected in zip(tree_masks, flat, strict=True):
            assert jax.tree.structure(mask) == jax.tree.structure(tree)
            paths = sorted("/".join(map(str, path)) for path, _ in nnx.to_flat_state(state))
            by_path = dict(zip(paths, jax.tree.leaves(mask), strict=True))
            assert by_path == dict(sorted(expected.items()))


def test_optax_chain_with_masks_freezes_the_same_parameters(model):
    params = params_lib.flatten_model(model).params
    trainable, decay, multiplier = masks(params, PHASE)
    labels = {path: str(rate) for path, rate in multiplier.items()}
    scales = {str(rate): optax.scale(-0.5 * rate) for rate in set(multiplier.values())}
    decayed = optax.masked(optax.add_decayed_weights(0.1), decay)
    chain = optax.chain(decayed, optax.partition(scales, labels))
    grads = {path: jnp.ones_like(x) * trainable[path] for path, x in params.items()}
    updates, _ = chain.update(grads, chain.init(params), params)
    after = optax.apply_updates(params, updates)
    for path, before in params.items():
        step = trainable[path] * (1 + 0.1 * decay[path] * np.asarray(before))
        np.testing.assert_allclose(after[path], before - 0.5 * multiplier[path] * step, rtol=1e-6, atol=1e-7)
        if not trainable[path]:
            np.testing.assert_array_equal(after[path], before)


def test_masks_reject_rules_that_match_nothing(model):
    params = params_lib.flatten_model(model).params
    with pytest.raises(UserError, match='rule "stage7/'):
        masks(params, Phase("p", (("stage7/.*", 1.0), (".*", 1.0))))
