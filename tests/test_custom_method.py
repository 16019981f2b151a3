"""A custom method in a file outside the package: compared with a reference, and in a run."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.run import small
from tljax import config as schema
from tljax import losses
from tljax.errors import UserError
from tljax.run.train import train

ROOT = Path(__file__).parent.parent
FILE = ROOT / "docs" / "batch_spectral_shrinkage.py"
GOLDEN = Path(__file__).parent / "golden" / "bss.npz"


@functools.cache
def value_and_grad_fn():
    shrinkage = losses.get_loss(f"{FILE}:shrinkage")

    def loss_fn(x, smallest):
        last = jnp.stack([0.5 * x, x, 1.5 * x], axis=1)[:, None]  # the average over locations is x
        # In alphabetical order, as in a compiled step.
        features = {"stage1": last, "stem": jnp.ones((len(x), 4, 4, 2))}
        return shrinkage({"maps": features}, {}, {}, {"smallest": smallest})

    return jax.jit(jax.value_and_grad(loss_fn))


def value_and_gradient(features, smallest):
    """Return the loss and its gradient for pooled features [B, C]."""
    return value_and_grad_fn()(features, smallest)


def reference(features, smallest):
    """Return the loss and its gradient in float64.

    σ² are the eigenvalues of FᵀF or FFᵀ. With the eigenvectors V of the smallest, their sum has gradient 2 F V Vᵀ.
    """
    x = np.asarray(features, np.float64)
    if len(x) < x.shape[1]:
        value, gradient = reference(x.T, smallest)
        return value, gradient.T
    values, vectors = np.linalg.eigh(x.T @ x)
    smallest_vectors = vectors[:, :smallest]
    return values[:smallest].sum(), 2 * x @ smallest_vectors @ smallest_vectors.T


@pytest.mark.parametrize("case", ["tall", "tall-3", "wide", "wide-all"])
def test_loss_matches_code_of_authors(case):
    with np.load(GOLDEN) as arrays:
        features, smallest, value, gradient = (
            arrays[f"{case}:{name}"] for name in ("features", "smallest", "value", "gradient")
        )
    for actual, expected in zip(reference(features, int(smallest)), (value, gradient), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)
    in_float32 = value_and_gradient(features.astype(np.float32), int(smallest))
    for actual, expected in zip(in_float32, (value, gradient), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(6, 4), (4, 6), (5, 5)]), st.data())
def test_loss_of_random_features_matches_reference(seed, shape, data):
    smallest = data.draw(st.integers(1, min(shape)))
    features = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    value, gradient = value_and_gradient(features, smallest)
    expected_value, expected_gradient = reference(features, smallest)
    size = np.square(features).sum()
    assert abs(value - expected_value) < 1e-5 * size
    # If the next singular value is equal, the smallest directions are not unique.
    squares = np.linalg.svd(np.float64(features), compute_uv=False)[::-1] ** 2
    if smallest == min(shape) or squares[smallest] - squares[smallest - 1] > 0.05:
        np.testing.assert_allclose(gradient, expected_gradient, atol=1e-3 * np.sqrt(size))


def test_gradient_of_zero_features_is_zero():
    value, gradient = value_and_gradient(np.zeros((4, 6), np.float32), 2)
    assert value == 0
    assert not np.any(gradient)


@pytest.fixture
def custom_config(tmp_path):
    c = small.config(tmp_path / "run")
    c.strategy.phases = ()
    c.strategy.name = f"{FILE}:batch_spectral_shrinkage"
    c.model.dropout = 0.0
    c.augment.crop_padding = 0
    c.train.epochs = 1
    return c


def test_hparams_of_custom_strategy_share_one_program(custom_config, tmp_path, console):
    programs = set()
    terms = {}
    for shrinkage, smallest in ((0.001, 1), (10.0, 8)):
        custom_config.workdir = str(tmp_path / f"run-{smallest}")
        custom_config.strategy.hparams = {"shrinkage": shrinkage, "smallest": smallest}
        with small.record_programs() as new_programs:
            result = train(schema.parse(custom_config), console, lines=False)
        programs |= new_programs
        assert [phase["name"] for phase in result["phases"]] == ["fine-tune"]
        row = json.loads(Path(custom_config.workdir, "metrics.jsonl").read_text().splitlines()[-1])["train"]
        terms[smallest] = next(value for name, value in row.items() if name.endswith("shrinkage"))
        assert row["loss"] == pytest.approx(row["cross_entropy"] + shrinkage * terms[smallest], rel=1e-5)
    assert 0 < terms[1] < terms[8]
    assert len(programs) == 1


def test_misspelled_custom_strategy_names_nearest(custom_config, console):
    custom_config.strategy.name = f"{FILE}:batch_spectral_shrinking"
    with pytest.raises(UserError, match='did you mean "batch_spectral_shrinkage"'):
        train(schema.parse(custom_config), console)
