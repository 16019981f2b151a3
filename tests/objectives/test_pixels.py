import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tljax.losses import pixelwise

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "pixels.npz")
LOSSES = {
    "cross_entropy": pixelwise.cross_entropy,
    "weighted": functools.partial(pixelwise.cross_entropy, weights=GOLDEN["weights"], smoothing=0.1),
    "focal": pixelwise.focal,
    "dice": pixelwise.dice,
    "lovasz": pixelwise.lovasz,
}
STEPS = {name: jax.jit(jax.value_and_grad(loss)) for name, loss in LOSSES.items()}


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_equal_the_references(name):
    with jax.enable_x64(True):
        step = jax.jit(jax.value_and_grad(LOSSES[name]))
        value, gradient = step(jnp.asarray(GOLDEN["logits"]), jnp.asarray(GOLDEN["labels"]))
    # The reference's Lovász loss is in float32.
    np.testing.assert_allclose(value, GOLDEN[name], rtol=1e-6 if name == "lovasz" else 1e-12)
    np.testing.assert_allclose(gradient, GOLDEN[f"{name}_gradient"], atol=1e-7 if name == "lovasz" else 1e-14)


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_is_lost_where_nothing_counts(name):
    value, gradient = STEPS[name](np.ones((1, 2, 2, 4), np.float32), np.full((1, 2, 2), pixelwise.IGNORED, np.int32))
    assert value == 0
    assert not np.any(gradient)


@pytest.mark.parametrize("name", LOSSES)
def test_certainty_of_the_truth_costs_nothing_and_has_a_finite_gradient(name):
    labels = np.array([[[0, 1], [2, 3]]], np.int32)
    value, gradient = STEPS[name](200 * np.eye(4, dtype=np.float32)[labels], labels)
    assert np.isfinite(gradient).all()
    if name != "weighted":  # smoothed labels are never met
        assert value == pytest.approx(0, abs=1e-6)
