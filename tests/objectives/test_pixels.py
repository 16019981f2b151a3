import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tljax.objectives import pixels

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "pixels.npz")
LOSSES = {
    "cross_entropy": pixels.cross_entropy,
    "weighted": functools.partial(pixels.cross_entropy, weights=GOLDEN["weights"], smoothing=0.1),
    "focal": pixels.focal,
    "dice": pixels.dice,
    "lovasz": pixels.lovasz,
}


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_equal_the_references(name):
    with jax.enable_x64(True):
        value, gradient = jax.value_and_grad(LOSSES[name])(jnp.asarray(GOLDEN["logits"]), jnp.asarray(GOLDEN["labels"]))
    # The reference's Lovász loss is in float32.
    np.testing.assert_allclose(value, GOLDEN[name], rtol=1e-6 if name == "lovasz" else 1e-12)
    np.testing.assert_allclose(gradient, GOLDEN[f"{name}_gradient"], atol=1e-7 if name == "lovasz" else 1e-14)


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_is_lost_where_nothing_counts(name):
    value, gradient = jax.value_and_grad(LOSSES[name])(jnp.ones((1, 2, 2, 4)), jnp.full((1, 2, 2), pixels.IGNORED))
    assert value == 0
    assert not gradient.any()


@pytest.mark.parametrize("name", LOSSES)
def test_certainty_of_the_truth_costs_nothing_and_has_a_finite_gradient(name):
    labels = jnp.array([[[0, 1], [2, 3]]])
    logits = 200.0 * jax.nn.one_hot(labels, 4)
    value, gradient = jax.value_and_grad(LOSSES[name])(logits, labels)
    assert jnp.isfinite(gradient).all()
    if name != "weighted":  # smoothed labels are never met
        assert value == pytest.approx(0, abs=1e-6)
