"""Pixelwise losses against PyTorch and segmentation_models_pytorch."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tljax.losses import pixelwise

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "pixelwise.npz")
LOSSES = {
    "cross_entropy": pixelwise.cross_entropy,
    "weighted": functools.partial(pixelwise.cross_entropy, weights=GOLDEN["weights"], smoothing=0.1),
    "focal": pixelwise.focal,
    "dice": pixelwise.dice,
    "lovasz": pixelwise.lovasz,
}
COMPILED = {name: jax.jit(jax.value_and_grad(loss)) for name, loss in LOSSES.items()}


@pytest.mark.parametrize("name", LOSSES)
def test_pixelwise_loss_matches_reference(name):
    with jax.enable_x64(True):
        run = jax.jit(jax.value_and_grad(LOSSES[name]))
        value, gradient = run(jnp.asarray(GOLDEN["logits"]), jnp.asarray(GOLDEN["labels"]))
    # The reference implementation of the Lovász loss is in float32.
    np.testing.assert_allclose(value, GOLDEN[name], rtol=1e-6 if name == "lovasz" else 1e-12)
    np.testing.assert_allclose(gradient, GOLDEN[f"{name}_gradient"], atol=1e-7 if name == "lovasz" else 1e-14)


@pytest.mark.parametrize("name", LOSSES)
def test_pixelwise_loss_is_zero_if_all_ignored(name):
    labels = np.full((1, 2, 2), pixelwise.IGNORED, np.int32)
    value, gradient = COMPILED[name](np.ones((1, 2, 2, 4), np.float32), labels)
    assert value == 0
    assert not np.any(gradient)


@pytest.mark.parametrize("name", LOSSES)
def test_pixelwise_loss_is_zero_if_certain_and_correct(name):
    labels = np.array([[[0, 1], [2, 3]]], np.int32)
    value, gradient = COMPILED[name](200 * np.eye(4, dtype=np.float32)[labels], labels)
    assert np.isfinite(gradient).all()
    if name != "weighted":  # smoothed labels have a positive minimum
        assert value == pytest.approx(0, abs=1e-6)
