"""Optimizers compared with Keras (tests/golden), and learning-rate schedules."""

import json
from pathlib import Path

import numpy as np
import optax
import pytest

from tljax.config import OptimConfig
from tljax.strategies import ParamGroup
from tljax.train.optimizer import learning_rate, make_optimizer, optimizer_hparams, optimizer_spec

KERAS = json.loads((Path(__file__).parent.parent / "golden" / "keras.json").read_text())


@pytest.mark.parametrize(
    ("name", "optim", "scale", "tolerance"),
    [
        ("rmsprop", OptimConfig(name="rmsprop", lr=1e-3), 1.0, 2e-6),
        ("rmsprop_small", OptimConfig(name="rmsprop", lr=1e-3), KERAS["small"], 2e-6),
        ("sgd_nesterov", OptimConfig(name="nesterov", lr=0.1, momentum=0.9), 1.0, 2e-6),
        ("adam", OptimConfig(name="adam", lr=1e-3, eps=1e-7), 1.0, 2e-6),
    ],
)
def test_five_steps_match_keras(name, optim, scale, tolerance):
    params = {"w": np.array(KERAS["start"], np.float32)}
    groups = {"w": ParamGroup(".*", 1.0, False)}
    hparams = optimizer_hparams(optim) | {"lr": optim.lr}
    optimizer = make_optimizer(optimizer_spec(optim), hparams, groups)
    state = optimizer.init(params)
    for t, expected in enumerate(KERAS["optimizers"][name]):
        grads = {"w": np.random.default_rng([11, t]).standard_normal(4).astype(np.float32) * np.float32(scale)}
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["w"], expected, atol=tolerance)


def test_weight_decay_is_decoupled_and_masked():
    optim = OptimConfig(name="adam", lr=0.1, weight_decay=0.5)
    groups = {"kernel": ParamGroup(".*", 1.0, True), "bias": ParamGroup(".*", 1.0, False)}
    optimizer = make_optimizer(optimizer_spec(optim), optimizer_hparams(optim) | {"lr": 0.1}, groups)
    params = {"kernel": np.full((2, 2), 2.0, np.float32), "bias": np.full(2, 2.0, np.float32)}
    zeros = {p: np.zeros_like(v) for p, v in params.items()}
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.1 * 0.5 * 2.0)
    np.testing.assert_array_equal(updates["bias"], 0)


def test_learning_rate_schedules():
    def rate(optim, step):
        return learning_rate(optim, step, steps=100, steps_per_epoch=10.0)

    assert rate(OptimConfig(lr=2.0), 99) == 2.0
    warm = OptimConfig(lr=2.0, warmup_epochs=1.0)
    assert [rate(warm, s) for s in (0, 4, 9, 10)] == pytest.approx([0.2, 1.0, 2.0, 2.0])
    cosine = OptimConfig(lr=2.0, schedule="cosine")
    assert [rate(cosine, s) for s in (0, 50)] == pytest.approx([2.0, 1.0])
    assert 0 < rate(cosine, 99) < 1e-3
    both = OptimConfig(lr=2.0, schedule="cosine", warmup_epochs=1.0)
    assert rate(both, 10) == pytest.approx(2.0)
    assert rate(both, 55) == pytest.approx(1.0)
    step = OptimConfig(lr=2.0, schedule="step", step_epochs=(3.0, 6.0), step_factor=0.1)
    assert [rate(step, s) for s in (29, 30, 59, 60)] == pytest.approx([2.0, 0.2, 0.2, 0.02])
