"""A method in a file outside the package: beside its reference, and in a run that a config names it in."""

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
def differentiated():
    shrinkage = losses.get_loss(f"{FILE}:shrinkage")

    def of_features(x, smallest):
        last = jnp.stack([0.5 * x, x, 1.5 * x], axis=1)[:, None]
        # In alphabetical order, as a compiled step leaves them.
        maps = {"stage1": last, "stem": jnp.ones((len(x), 4, 4, 2))}
        return shrinkage({"maps": maps}, {}, {}, {"smallest": smallest})

    return jax.jit(jax.value_and_grad(of_features))


def value_and_gradient(features, smallest):
    """Of features [B, C], which come as the middle of maps that average to them."""
    return differentiated()(features, smallest)


def rendering(features, smallest):
    """In float64: σ² are the eigenvalues of FᵀF or FFᵀ; with V of the smallest, their sum has gradient 2 F V Vᵀ."""
    x = np.asarray(features, np.float64)
    if len(x) < x.shape[1]:
        value, gradient = rendering(x.T, smallest)
        return value, gradient.T
    values, vectors = np.linalg.eigh(x.T @ x)
    chosen = vectors[:, :smallest]
    return values[:smallest].sum(), 2 * x @ chosen @ chosen.T


@pytest.mark.parametrize("case", ["tall", "tall-3", "wide", "wide-all"])
def test_the_objective_is_the_authors(case):
    with np.load(GOLDEN) as arrays:
        features, smallest, value, gradient = (
            arrays[f"{case}:{name}"] for name in ("features", "smallest", "value", "gradient")
        )
    for found, expected in zip(rendering(features, int(smallest)), (value, gradient), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    own = value_and_gradient(features.astype(np.float32), int(smallest))
    for found, expected in zip(own, (value, gradient), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(6, 4), (4, 6), (5, 5)]), st.data())
def test_any_features(seed, shape, data):
    smallest = data.draw(st.integers(1, min(shape)))
    features = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    (value, gradient), (expected, slope) = value_and_gradient(features, smallest), rendering(features, smallest)
    size = np.square(features).sum()
    assert abs(value - expected) < 1e-5 * size
    # Where the next singular value is as large, which directions are the smallest is anyone's choice.
    squares = np.linalg.svd(np.float64(features), compute_uv=False)[::-1] ** 2
    if smallest == min(shape) or squares[smallest] - squares[smallest - 1] > 0.05:
        np.testing.assert_allclose(gradient, slope, atol=1e-3 * np.sqrt(size))


def test_it_is_finite_where_features_are_dead():
    value, gradient = value_and_gradient(np.zeros((4, 6), np.float32), 2)
    assert value == 0
    assert not np.any(gradient)


@pytest.fixture
def own(tmp_path):
    tiny = small.config(tmp_path / "run")
    tiny.strategy.phases = ()
    tiny.strategy.name = f"{FILE}:batch_spectral_shrinkage"
    tiny.model.dropout = 0.0
    tiny.augment.crop_padding = 0
    tiny.train.epochs = 1
    return tiny


def test_a_config_names_it_and_its_numbers_compile_nothing(own, tmp_path, console):
    programs, terms = set(), {}
    for shrinkage, smallest in ((0.001, 1), (10.0, 8)):
        own.workdir = str(tmp_path / f"run-{smallest}")
        own.strategy.hparams = {"shrinkage": shrinkage, "smallest": smallest}
        with small.watched_programs() as asked:
            result = train(schema.parse(own), console, lines=False)
        programs |= asked
        assert [phase["name"] for phase in result["phases"]] == ["fine-tune"]
        row = json.loads(Path(own.workdir, "metrics.jsonl").read_text().splitlines()[-1])["train"]
        terms[smallest] = next(value for name, value in row.items() if name.endswith("shrinkage"))
        assert row["loss"] == pytest.approx(row["cross_entropy"] + shrinkage * terms[smallest], rel=1e-5)
    assert 0 < terms[1] < terms[8]
    assert len(programs) == 1


def test_a_misspelt_name_is_one_sentence(own, console):
    own.strategy.name = f"{FILE}:batch_spectral_shrinking"
    with pytest.raises(UserError, match='did you mean "batch_spectral_shrinkage"'):
        train(schema.parse(own), console)
